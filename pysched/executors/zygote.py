"""Keeps one zygote alive: starts it, introduces it to the lanes, replaces it when it is gone or hangs.

    ┌─► importing ──"ready" on the status pipe──► ready ──┐
    │      │  ◄──────────"importing again"──────────│     │ ends, or leaves requests unanswered for HUNG_S
    │      │ ends, or takes longer than READY_S           │
    └──────┴── back-off ◄─────────────────────────────────┘

What the lanes had asked of a zygote that is gone they ask of the next one, so no job is lost (`csrc/zygote.pyx`).  One
that dies `DEATHS` times before it is ready, of what it imports, is followed by one that imports nothing and tells every
job why, for `BROKEN_S`; then the imports get another chance.

The thread that starts zygotes must live as long as they: jobs become *its* children in the kernel's books, and would be
taken for orphans if they were the main thread's.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from pysched.executors.launch import program_file

READY_S = 120.0  # torch from a cold disk takes a while
HUNG_S = 30.0
BROKEN_S = 30.0
DEATHS = 3
LOOK_S = 5.0  # between two looks whether it hangs
_BACKOFF_S = (0.1, 5.0)
_UNBORN_S = 5.0
_RTTIME = 15  # RLIMIT_RTTIME, of which the module `resource` knows nothing; see csrc/tree.pyx


def collect_unborn() -> int:
    """Collect what zygotes of this thread forked and what ended before it could say so, which no lane knows; how many
    are left.  A job that has said so has a mark; what could not be started may be collected by either."""
    left = 0
    own = resource.getrlimit(_RTTIME)
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel that does not tell
        return 0
    for pid in children:
        with suppress(ChildProcessError, ProcessLookupError):
            if resource.prlimit(pid, _RTTIME) == own and os.waitpid(pid, os.WNOHANG)[0] == 0:
                left += 1
    return left


class Zygote:
    """`meet(sockets)` hands the lanes their ends, one each; `awaited_s()` is how long requests are unanswered.

    `table` is the file of running attempts, if the core has one.
    """

    def __init__(
        self,
        *,
        lanes: int,
        preload: Sequence[str],
        environ: Mapping[str, str],
        table: str = "",
        meet: Callable[[Sequence[int]], None],
        awaited_s: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._preload = list(preload)
        self._environ = dict(environ)
        self._table = table
        self._meet = meet
        self._awaited_s = awaited_s
        self.pid: int | None = None  # of the zygote there is
        self._deaths = 0  # in a row, before being ready
        self._problem = ""  # what they died of
        self._stopping = threading.Event()
        self._bell, self._ring = os.pipe()
        self._thread = threading.Thread(target=self._run, name="zygote", daemon=True)
        self._log = structlog.get_logger("zygote")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the zygote, if it was started; jobs that it has forked go on."""
        if self._thread.ident is not None and not self._stopping.is_set():
            self._stopping.set()
            os.write(self._ring, b"x")
            self._thread.join()
            os.close(self._bell)
            os.close(self._ring)

    def _run(self) -> None:
        pause = _BACKOFF_S[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._one()
            except OSError as error:
                self._log.error("the zygote cannot be started, ML jobs wait", error=str(error))
            pause = _BACKOFF_S[0] if time.monotonic() - began > _BACKOFF_S[1] else min(2 * pause, _BACKOFF_S[1])
            self._stopping.wait(pause)
        deadline = time.monotonic() + _UNBORN_S
        while collect_unborn() and time.monotonic() < deadline:
            time.sleep(0.01)  # for a process that has nothing to do but to end

    def _one(self) -> None:
        """From the start of a zygote to its end."""
        problem = self._problem if self._deaths >= DEATHS else ""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(self._lanes)]
        status, told = os.pipe()
        try:
            theirs = [pair[1].fileno() for pair in pairs]
            process = subprocess.Popen(
                [
                    sys.executable,
                    program_file("zygote"),
                    str(told),
                    ",".join(map(str, theirs)),
                    self._table,
                    problem,
                    *([] if problem else self._preload),
                ],
                pass_fds=[told, *theirs],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={**self._environ, "LD_BIND_NOW": "1"},  # what a zygote has not resolved, each of its jobs would
            )
        except OSError:
            os.close(status)
            for pair in pairs:
                pair[0].close()
            raise
        finally:
            os.close(told)
            for pair in pairs:
                pair[1].close()
        try:
            self.pid = process.pid
            self._meet([pair[0].detach() for pair in pairs])
            ready = self._watch(process, status, broken_until=time.monotonic() + BROKEN_S if problem else None)
        finally:
            self.pid = None
            process.kill()
            process.wait()
            os.close(status)
        collect_unborn()
        if not self._stopping.is_set():
            self._account(process.returncode, ready=ready or bool(problem))

    def _watch(self, process: subprocess.Popen[bytes], status: int, *, broken_until: float | None) -> bool:
        """Until it ends or must be ended; whether it was ever ready."""
        since: float | None = None  # when it became ready; None: it imports
        ever = False
        deadline = time.monotonic() + READY_S
        while not self._stopping.is_set():
            news, _, _ = select.select([status, self._bell], [], [], LOOK_S)
            now = time.monotonic()
            if status in news:
                lines = os.read(status, 65_536).splitlines()
                if not lines:
                    return ever
                told = json.loads(lines[-1])
                since = now if told["ready"] else None
                deadline = now + READY_S
                ever = ever or since is not None
                self._tell(told)
            waited_s = 0.0 if since is None else min(self._awaited_s(), now - since)
            if waited_s > HUNG_S or (since is None and now > deadline):
                self._log.error("the zygote hangs, replacing it", pid=process.pid, importing=since is None)
                return ever
            if broken_until is not None and now > broken_until:
                return ever
        return ever

    def _tell(self, told: dict[str, Any]) -> None:
        if not told["ready"]:
            self._log.debug("importing again", preload=self._preload)
        elif told["problem"] is None:
            self._log.info("warm", pid=self.pid, preload=self._preload)
        else:
            self._log.error("ML jobs fail", problem=told["problem"])

    def _account(self, code: int, *, ready: bool) -> None:
        if ready:
            self._deaths = 0
            return
        self._deaths += 1
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        self._problem = f"preload: the zygote ended by {how} while it imported {', '.join(self._preload)}"
        self._log.error("the zygote ended before it was ready", how=how, preload=self._preload)
