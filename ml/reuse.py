"""A worker that makes one call after the other, instead of being forked for each; `csrc/worker.pyx` draws its life.

It is forked by the zygote for its first call.  What a call leaves in the process the next one finds: modules, their
state, open files.  Environment, working folder, import path, umask and output are each call's own.  A worker ends with
its call, and the next call gets another one, if the call leaves threads or processes behind or closes what it was
given, after `CALLS` calls, and when its memory has grown too much.  It refuses a call, and ends, if a file of what is
imported has changed.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn, Protocol

from pysched.ml import _sibling, entrypoint

CALLS = 5_000
LOOK_S = 0.2  # between two looks at the files of what is imported, some 0.2 ms each, by each of many workers
GROWTH_BYTES = 256 * 2**20  # of resident memory, since the first call ended

Words = tuple[bytes, ...]
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Sources(Protocol):
    def note(self) -> None: ...
    def changed(self, after_s: float) -> bool: ...


class Worker:
    """`sources` are the files of what is imported."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._environ = os.environ
        self._mirror: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
        self._path = list(sys.path)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._calls = 0
        self._resident = 0  # after the first call
        self._code = 0  # of the last call …
        self._result: bytes | None = None  # … and its result, while it is not in its file

    def keep(self, result: bytes) -> bool:
        """Of the call that is under way, if it goes with the call's end; the last one counts."""
        short = len(result) <= _sibling.RESULT_BYTES
        self._result = result if short else None
        return short

    def end(self, code: int | None) -> bool:
        """A call has ended; whether the node knows, and there may be another one."""
        self._calls += 1
        self._sources.note()
        if code is None or not self._is_fit() or not self._flush() or not _sibling.end(code, self._result):
            return False
        self._code = code
        sys.stdin, sys.stdout, sys.stderr = self._streams
        os.environ = self._environ  # noqa: B003 - it may have put another one there
        if sys.path != self._path:
            sys.path[:] = self._path
        os.umask(self._umask)
        return True

    def leave_result(self, code: int | None) -> int | None:
        """The node does not know that of the last call: put it where the node looks for that of any job.  The exit
        code, which was to be `code`."""
        path = _sibling.result_path()
        if self._result is None or path is None:
            return code
        return entrypoint.leave("the worker", os.fsdecode(path), self._result) or code

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
        has_children, peak_kb = _sibling.look()
        if self._calls >= CALLS or threading.active_count() > 1 or has_children:
            return False
        if self._calls == 1:
            self._resident = _resident()
        # Only where there has been so much more at a time it can have stayed.
        grown = peak_kb * 1024 - self._resident >= GROWTH_BYTES
        return not grown or _resident() - self._resident < GROWTH_BYTES

    def next(self) -> Words:
        """The next call; does not return if there is none."""
        while True:
            if not _sibling.receive():
                self._finish()
            if self._sources.changed(LOOK_S):
                _sibling.refuse()
                self._finish()
            self._result = None
            words = _sibling.begin(self._mirror)
            if words is not None:
                return words

    def _finish(self) -> NoReturn:
        """There are no more calls.  A node that died before it heard of the last one's end learns it from ours; else
        ours must not pass for that of a call that was not made."""
        atexit._run_exitfuncs()
        if not _sibling.last_is_heard():
            os._exit(self.leave_result(self._code) or 0)
        _sibling.remove_logs()
        os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE
