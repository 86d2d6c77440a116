"""`scheduler up`: a node and the control plane, as processes under one parent.

The parent runs no job and serves no request; it starts the children again when they die (with
back-off) and passes signals on: the first drains, the second stops at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pysched.errors import NodeError

# By path and not by -m: that would let a folder `pysched` where the user happens to stand pass for the package.
SCHEDULER = (sys.executable, str(Path(__file__).parent / "cli" / "__main__.py"))

_BACKOFF_S = (0.5, 30.0)
_STABLE_S = 60.0  # a child that lived this long has earned the shortest back-off again
_QUICK_DEATHS = 5  # in a row, each before `_STABLE_S`: something is wrong that a restart does not mend
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass(slots=True)
class Child:
    """One supervised command, `scheduler NAME`; its settings travel in the environment, which `ps` does not show."""

    name: str
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restart_at: float = 0.0
    deaths: int = 0

    def start(self, now: float) -> None:
        self.started = now
        # A session of its own: ^C reaches the parent alone, which passes it on once.
        self.process = subprocess.Popen(
            [*SCHEDULER, self.name, "--parent-pid", str(os.getpid())],
            env={**os.environ, **self.environ},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def backoff_s(self) -> float:
        return min(_BACKOFF_S[0] * 2.0 ** (self.deaths - 1), _BACKOFF_S[1])

    def terminate(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)


class Supervisor:
    """Runs the children until told to stop.  Use it from the main thread: it installs signal handlers."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._stopping = False
        self._log = structlog.get_logger("up")

    def run(self) -> None:
        """Returns when all children have stopped after a signal; `NodeError` if one dies again and again."""
        with _signals() as arrived:
            try:
                for child in self._children:
                    child.start(time.monotonic())
                while not (self._stopping and all(child.process is None for child in self._children)):
                    self._react(arrived(self._patience_s(time.monotonic())))
            finally:
                for child in self._children:
                    child.terminate()
                for child in self._children:
                    if child.process is not None:
                        child.process.wait()

    def _react(self, signals: bytes) -> None:
        for number in signals:
            if number != signal.SIGCHLD:
                self._stopping = True
                for child in self._children:
                    child.terminate()
        for child in self._children:
            self._look_after(child, time.monotonic())

    def _patience_s(self, now: float) -> float:
        waiting = [child.restart_at - now for child in self._children if child.process is None and not self._stopping]
        return max(0.0, min(waiting, default=60.0))

    def _look_after(self, child: Child, now: float) -> None:
        if child.process is None:
            if not self._stopping and now >= child.restart_at:
                child.start(now)
            return
        code = child.process.poll()
        if code is None:
            return
        child.process = None
        if self._stopping:
            return
        child.deaths = 1 if now - child.started > _STABLE_S else child.deaths + 1
        if child.deaths >= _QUICK_DEATHS:
            raise NodeError(
                f"scheduler {child.name} ended {child.deaths} times in a row, last with {code}; see its messages above"
            )
        child.restart_at = now + child.backoff_s()
        self._log.error("a process ended, starting it again", process=child.name, code=code, in_s=child.backoff_s())


@contextlib.contextmanager
def _signals() -> Iterator[_Arrived]:
    """Signals as bytes in a pipe: none is lost between two looks, and no handler interrupts anything."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(writer.fileno())
        try:
            yield _Arrived(reader)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class _Arrived:
    reader: socket.socket

    def __call__(self, timeout_s: float) -> bytes:
        """Numbers of the signals that arrived, waiting at most `timeout_s` for the first."""
        ready, _, _ = select.select([self.reader], [], [], timeout_s)
        return self.reader.recv(4096) if ready else b""
