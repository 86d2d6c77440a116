"""1,000 hostile trees, some ended one after the other, then all at once: does anything survive, and how long does it
take from KILL to gone?

    python benchmarks/trees.py [--trees 1000] [--runs 5] [--scan]

Trees live in control groups of their own where this user may make some; with `--scan` they are looked for in /proc.
Two times are told of each: from the moment in which all are told to end, and from its own KILL, since trees in control
groups are killed 32 at a time.

Each tree is one attempt that double-forks, leaves its session, clears its environment, closes its descriptors, ignores
TERM, has a stopped member, and one that forks in a loop (with a pause of five seconds in between, and bounded: 1,000
that do not rest would leave no CPU to anybody, this program included).  Survivors are looked for by a number in their
command line, which the core knows nothing of.  The floor, printed beside it, is what the kernel takes to end as many
processes of the same programs whose numbers are known.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from pysched import delegation
from pysched._core import CAUSE_CANCEL, EXITED, Core, Launch

HOSTILE = """
trap '' TERM
(env -i setsid -f sleep TOKEN <&- >&- 2>&- &)
(setsid -f sh -c 'trap "" TERM; kill -STOP $$' x TOKEN &)
(setsid -f sh -c 'trap "" TERM; n=0
while [ $n -lt 50 ]; do n=$((n+1)); (setsid -f sleep 0.01 &); sleep 5; done' x TOKEN <&- >&- 2>&- &)
sleep TOKEN & sleep TOKEN
"""
SINGLES = 20  # ended one after the other, while all others run
PER_TREE = 5  # processes that carry the token at rest: three in sessions of their own, two in the leader's


def carriers(token: bytes) -> int:
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", name, "cmdline").read_bytes()
        except OSError:
            continue
        count += token in line.split(b"\0")
    return count


def forget_entries() -> None:
    """Drop what looking into /proc has left in the kernel's caches: who collects a process must drop it else, which is
    twice the work.  Refused to users."""
    with suppress(PermissionError):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def looked_ms() -> float:
    """Processor time of the thread that looks for the members of trees and signals them."""
    for thread in Path("/proc/self/task").iterdir():
        if (thread / "comm").read_text() == "pysched-killer\n":
            return int((thread / "schedstat").read_text().split()[0]) / 1e6
    raise LookupError("no such thread")


class Times(NamedTuple):
    """Of the ends of some trees, in seconds; sorted."""

    gone: list[float]  # since all were told to end
    killed: list[float]  # since each got its KILL

    @staticmethod
    def ms(times: list[float], percent: int) -> float:
        return times[min(len(times) - 1, len(times) * percent // 100)] * 1000


def end_trees(core: Core, handles: Iterable[int]) -> Times:
    """KILL them all."""
    killed = time.monotonic()
    left = set(handles)
    for handle in left:
        core.kill(handle, 0.0, CAUSE_CANCEL)
    times = Times([], [])
    while left:
        ended = [event for event in core.poll(10) if event.kind == EXITED and event.handle in left]
        times.gone.extend([time.monotonic() - killed] * len(ended))
        times.killed.extend(event.kill_ns / 1e9 for event in ended)
        left.difference_update(event.handle for event in ended)
    times.killed.sort()
    return times


class Measured(NamedTuple):
    processes: int  # before the trees are ended all at once
    singles: list[float]  # seconds to the end of trees that were ended one after the other
    times: Times  # of the others
    looked_ms: float  # spent with looking for and signalling those
    survivors: int  # of all, by the token


def run(trees: int, folder: str, cgroup: Path | None) -> Measured:
    token = f"600.{random.randrange(10**8, 10**9)}"  # seconds: nothing outlives this program for long
    core = Core(lanes=os.cpu_count() or 1, workers=trees, subreaper=True, cgroup=cgroup)
    try:
        core.submit(
            [
                Launch(
                    handle=handle,
                    priority=0,
                    rank=0,
                    sequence=handle,
                    argv=[b"sh", b"-c", HOSTILE.replace("TOKEN", token).encode()],
                    candidates=[b"/bin/sh"],
                    env=[b"PATH=/usr/bin:/bin"],
                    cwd=folder.encode(),
                    stdout=b"/dev/null",
                    stderr=b"/dev/null",
                )
                for handle in range(trees)
            ]
        )
        deadline = time.monotonic() + 120
        while carriers(token.encode()) < trees * PER_TREE and time.monotonic() < deadline:
            core.poll(0.1)
        singles = [end_trees(core, [handle]).gone[0] for handle in range(SINGLES)]
        before = len(psutil.Process().children(recursive=True))
        forget_entries()
        looked = looked_ms()
        times = end_trees(core, range(SINGLES, trees))
        return Measured(before, singles, times, looked_ms() - looked, carriers(token.encode()))
    finally:
        for handle in range(trees):
            core.kill(handle, 0.0, CAUSE_CANCEL)
        while core.running:
            core.poll(1)
        core.close()


def floor_ms(processes: int) -> float:
    """KILL so many and wait until they are dead, with nothing to look for: of each tree's seven three are shells."""
    programs = [["/bin/sleep", "600"]] * 4 + [["/bin/sh", "-c", "kill -STOP $$; exit"]] * 3
    children = []
    for program in itertools.islice(itertools.cycle(programs), processes):
        children.append(os.posix_spawn(program[0], program, {}))
        if program[0] == "/bin/sh":
            os.waitid(os.P_PID, children[-1], os.WSTOPPED)
    begun = time.monotonic()
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    took_ms = (time.monotonic() - begun) * 1000
    for child in children:
        os.waitpid(child, 0)
    return took_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scan", action="store_true", help="without control groups")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through the `finally` that ends all trees
    with nullcontext() if options.scan else delegation.folder(f"bench-{os.getpid()}") as cgroup:
        measure(options.trees, options.runs, cgroup)


def measure(trees: int, runs: int, cgroup: Path | None) -> None:
    """Run and print."""
    singles, p50s, p99s, kills, floors, survivors = [], [], [], [], [], 0
    for number in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            measured = run(trees, folder, cgroup)
        times = measured.times
        singles.append(statistics.median(measured.singles) * 1000)
        p50s.append(times.ms(times.gone, 50))
        p99s.append(times.ms(times.gone, 99))
        kills.append(times.ms(times.killed, 99))
        survivors += measured.survivors
        floors.append(floor_ms(measured.processes))
        print(
            f"run {number + 1}: one of {trees} trees {singles[-1]:.1f} ms; {measured.processes} processes: "
            f"p50 {p50s[-1]:.0f} ms, p99 {p99s[-1]:.0f} ms; after its KILL p99 {kills[-1]:.0f} ms; "
            f"floor {floors[-1]:.0f} ms, {measured.looked_ms:.0f} ms of processor time for looking and signalling; "
            f"{measured.survivors} survivors",
            flush=True,
        )
    ratio = statistics.median(p99 / floor for p99, floor in zip(p99s, floors, strict=True))
    how = "by /proc" if cgroup is None else "by the kernel"
    print(
        f"{trees} trees, ended {how}: {survivors} survivors; median of {runs} runs: "
        f"one alone {statistics.median(singles):.1f} ms, all p50 {statistics.median(p50s):.0f} ms, "
        f"p99 {statistics.median(p99s):.0f} ms ({min(p99s):.0f}-{max(p99s):.0f}), {ratio:.1f}x the floor; "
        f"each after its KILL p99 {statistics.median(kills):.0f} ms ({min(kills):.0f}-{max(kills):.0f})"
    )


if __name__ == "__main__":
    main()
