"""A worker that makes one call after the other, instead of being forked for each; `csrc/worker.pyx` draws its life.

It is forked by the zygote for its first call.  What a call leaves in the process the next one finds: modules, their
state, open files.  Environment, working folder, import path, umask and output are each call's own.  A worker ends with
its call, and the next call gets another one, if the call leaves threads or processes behind or closes what it was
given, after `CALLS` calls, and when its memory has grown too much.  If a file of what is imported has changed it begins
anew, by exec, before the next call.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

from pysched.ml import _sibling

CALLS = 1_000
GROWTH_BYTES = 256 * 2**20  # of resident memory, since the first call ended

Words = tuple[bytes, ...]
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sources(Protocol):
    def note(self) -> None: ...
    def changed(self) -> bool: ...


class Worker:
    """`sources` are the files of what is imported; `environment` and `again` are what the process is executed with when
    one has changed."""

    def __init__(self, *, sources: Sources, environment: Mapping[str, str], again: Sequence[str]) -> None:
        self._sources = sources
        self._environment = dict(environment)
        self._again = list(again)
        self._environ = os.environ
        self._mirror: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
        self._path = list(sys.path)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._calls = 0
        self._resident = 0  # after the first call

    def end(self, code: int | None) -> bool:
        """A call has ended; whether the node knows, and there may be another one."""
        self._calls += 1
        self._sources.note()
        if code is None or not self._is_fit() or not self._flush() or not _sibling.end(code):
            return False
        sys.stdin, sys.stdout, sys.stderr = self._streams
        os.environ = self._environ  # noqa: B003 - it may have put another one there
        sys.path[:] = self._path
        os.umask(self._umask)
        return True

    def _flush(self) -> bool:
        for stream in (sys.stdout, sys.stderr):
            if stream not in self._streams:
                with suppress(OSError, ValueError, AttributeError):  # the call's own
                    stream.flush()
        try:
            for stream in self._streams[1:]:
                stream.flush()
        except (OSError, ValueError):  # it has closed it
            return False
        return True

    def _is_fit(self) -> bool:
        if self._calls >= CALLS or threading.active_count() > 1:
            return False
        with suppress(ChildProcessError):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return False  # it has children
        if self._calls == 1:
            self._resident = _resident()
        # Only where there has been so much more at a time it can have stayed.
        grown = _sibling.peak_kb() * 1024 - self._resident >= GROWTH_BYTES
        return not grown or _resident() - self._resident < GROWTH_BYTES

    def next(self, code: int) -> Words:
        """The next call; does not return if there is none.  `code`: of the call before, for a node that has not heard
        it."""
        while True:
            _sibling.wait([_sibling.WORKER_SOCKET])
            if self._sources.changed():
                self._begin_anew()
            try:
                words = _sibling.next_call(self._mirror)
            except EOFError as end:
                _finish(code, known=bool(end.args[0]))
            if words is not None:
                return words

    def _begin_anew(self) -> NoReturn:
        os.chdir("/")
        os.set_inheritable(_sibling.WORKER_SOCKET, True)
        os.execve(sys.executable, self._again, self._environment)  # noqa: S606 - no shell is wanted


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE


def _finish(code: int, *, known: bool) -> NoReturn:
    """There are no more calls.  A node that died before it heard of the last one's end learns it from ours; else ours
    must not pass for that of a call that was not made."""
    atexit._run_exitfuncs()
    if known:
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(code)
