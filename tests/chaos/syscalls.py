"""Every system call by which a node accepts, claims, spawns, finishes and delivers, made the last one or made to fail.

strace is attached to the threads of a running node (not to its jobs), with one of its injections: KILL at the N-th call
of a kind, for each N until the work is done before it comes; or an error of the disk, the network or the kernel.

    python -m tests.chaos.syscalls            the whole walk
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import processes
from tests.chaos.episode import Report, judge, open_ends
from tests.chaos.workload import Clients, Job, Order, make_task
from tests.chaos.world import World, wait_for

TASKS = 3  # a step: few, so that a walk is short
_STEP_S = 90.0
_LET_GO_S = 3.0
_READY = re.compile(r" ready .*\bnode=([0-9a-f]+)")

# What the calls are for: unlink, the accepted file; sendto and recvfrom, statements; clone, a job's start; openat,
# its logs, and with write, fsync and rename the `.done` file.
KILLED = ("unlink,unlinkat", "sendto", "recvfrom", "clone,clone3", "openat", "write", "fsync", "rename,renameat")


@dataclass(frozen=True, slots=True)
class Injection:
    call: str
    what: str  # as strace says it: signal=KILL, error=EIO …
    when: str  # the N-th of each thread, or N+ for it and all after
    on_done: bool = False  # only where it is about the `.done` file of a task of this step

    def __str__(self) -> str:
        return f"{self.call}:{self.what}:when={self.when}{' of .done' if self.on_done else ''}"


# No errors of sendto: libpq then waits for the server's last words, which on a connection that is really broken come,
# or its end, and here, where only the call lied, do not.
FAILING = (
    Injection("fsync", "error=EIO", "1", on_done=True),
    Injection("fsync", "error=ENOSPC", "2", on_done=True),
    Injection("write", "error=ENOSPC", "1", on_done=True),
    Injection("write", "error=EDQUOT", "2", on_done=True),
    Injection("rename,renameat", "error=EIO", "1", on_done=True),
    Injection("openat", "error=EMFILE", "1", on_done=True),
    Injection("unlink,unlinkat", "error=EIO", "1"),
    Injection("recvfrom", "error=ECONNRESET", "1"),
    Injection("recvfrom", "error=ETIMEDOUT", "3"),
    Injection("clone,clone3", "error=EAGAIN", "1"),
    Injection("clone,clone3", "error=ENOMEM", "2"),
)


def available() -> str | None:
    """Why this cannot be done here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with subprocess.Popen(["sleep", "60"]) as victim:  # where only descendants may be traced, this is refused
        done = subprocess.run(
            ["timeout", "--signal=INT", "0.5", "strace", "-p", str(victim.pid)], capture_output=True, check=False
        )
        victim.kill()
    return None if b"attached" in done.stderr else "strace may not attach to a process here"


class Walk:
    """Steps on one world, each with an injection into its node and a few tasks of its own."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._steps = 0
        self.clients = Clients(world, [])  # gathers what those of the steps submitted
        self.clients.start()

    def step(self, injection: Injection, *, rounds: int = 1) -> bool:
        """Whether the injection had an effect: the node died of it, or was told of an error.

        How many calls a thread makes for a few tasks depends on how they come together in batches, hence `rounds`: up
        to so many times a few tasks, until there is an effect.
        """
        pid = self._ready_node()
        self._steps += 1
        names = [[f"s{self._steps}-{turn}-{number}" for number in range(TASKS)] for turn in range(rounds)]
        log = self._world.root / f"strace.{self._steps}"
        completed = self._world.nodes[0].completed
        done = [f".{name}.done.tmp" for turn in names for name in turn] if injection.on_done else []
        paths = [*done, *(str(completed / name) for name in done)]  # strace compares what the call was given
        killing = "KILL" in injection.what
        tracer = attach(pid, injection, log, paths)
        try:
            for turn in names:
                self._submit(turn)
                self._until(lambda: _is_dead(pid) or not open_ends(self._world), f"the end of a step with {injection}")
                if _is_dead(pid) or (not killing and _was_injected(log)):
                    break
        finally:
            _let_go(tracer)
        self._until(lambda: not open_ends(self._world), f"recovery from {injection}")
        return _is_dead(pid) if killing else _was_injected(log)

    def _ready_node(self) -> int:
        """The pid of a node that says that it is ready, which it does when it has all its threads."""
        found: list[int] = []

        def look() -> bool:
            ready = _READY.findall(self._world.nodes[0].messages)
            pid = self._world.nodes[0].parts()[1]
            if not ready or pid is None or _is_dead(pid):
                return False
            with self._world.cluster.connect() as conn:
                row = conn.execute(
                    "SELECT pid FROM pysched.nodes WHERE starts_with(incarnation::text, %s)", [ready[-1]]
                ).fetchone()
            if row != (pid,):
                return False
            found.append(pid)
            return True

        self._until(look, "the node to be back")
        return found[0]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, what, _STEP_S, self._world.last_words)

    def _submit(self, names: Sequence[str]) -> None:
        tasks = [make_task(self._world, name, Job(5), max_retries=9) for name in names]
        clients = Clients(self._world, [Order("file", (task,), patient=True) for task in tasks], parallel=1)
        clients.start()
        clients.join(_STEP_S)
        self.clients.submitted += clients.submitted


def attach(pid: int, injection: Injection, log: Path, paths: Sequence[str]) -> subprocess.Popen[bytes]:
    """strace on every thread that `pid` has now; returns when all are traced."""
    threads = os.listdir(f"/proc/{pid}/task")
    command = ["strace", "-qq", "-o", str(log), "-e", f"trace={injection.call}"]
    command += ["-e", f"inject={injection.call}:{injection.what}:when={injection.when}"]
    command += [word for path in paths for word in ("-P", path)]
    command += [word for thread in threads for word in ("-p", thread)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: tracer.poll() is not None or all(_is_traced(pid, thread) for thread in threads), "strace", _STEP_S)
    return tracer


def _let_go(tracer: subprocess.Popen[bytes]) -> None:
    """strace detaches at INT; where it waits for a thread that will not stop any more, the kernel does it."""
    tracer.send_signal(signal.SIGINT)
    try:
        tracer.wait(_LET_GO_S)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()


def _is_traced(pid: int, thread: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
    except OSError:
        return True  # it ended meanwhile
    return "TracerPid:\t0\n" not in status


def _is_dead(pid: int) -> bool:
    return processes.state(pid) in {"", "Z"}


def _was_injected(log: Path) -> bool:
    """strace writes a line at once; the last one may still be half there."""
    return "(INJECTED)" in log.read_text(errors="replace")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.syscalls", description=__doc__)
    parser.add_argument("--calls", type=int, default=12, help="of each kind that may be the last one")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    reason = available()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    deadline = time.monotonic() + 60 * given.minutes
    report = Report(0)
    with World(nodes=1, workers=2) as world:
        walk = Walk(world)
        for injection in FAILING:
            report.others += walk.step(injection)
        left = list(KILLED)
        for number in range(1, given.calls + 1):  # all kinds in turns: time may be up before the end
            for call in tuple(left):
                if time.monotonic() > deadline:
                    break
                if walk.step(Injection(call, "signal=KILL", str(number))):
                    report.kills += 1
                    report.effects[call] += 1
                else:
                    left.remove(call)
        if time.monotonic() > deadline:
            print(f"time was up after {report.kills} kills; --minutes {given.minutes * 2:g} would give it more")
        judge(world, walk.clients, report)
    print(report)
    for violation in report.violations:
        print(f"VIOLATION {violation}")
    return 1 if report.violations or not report.kills else 0


if __name__ == "__main__":
    sys.exit(main())
