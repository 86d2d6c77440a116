"""The queue folder: which files are ready, reading them safely, removing and rejecting them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pysched._core import read_files, remove_files, scan_files
from pysched.errors import Problem, TaskError
from pysched.intake.taskfile import FILE_BYTES

SUFFIX = ".task"
SCAN_MAX = 10_000  # entries looked at in one scan: bounds memory however full the folder is
QUIET_S = 0.25  # where the kernel cannot tell whether a writer has a file open, it must rest this long
_AT_ONCE_BYTES = 16 * 1024  # files up to this length are read many at a time
_PAUSE_S = (1.0, 300.0)  # first and longest, before a file that could not be handled is tried again
# Says nothing of the file: whoever gives it up for that loses a good task.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR}
_F_SETSIG = 10  # fcntl(2); not in Python's fcntl module


class Found(NamedTuple):
    """A file seen by a scan; the last four tell one version of a name from the next."""

    name: str
    device: int
    inode: int
    mtime_ns: int
    size: int

    @property
    def stem(self) -> str:
        return self.name[: -len(SUFFIX)]

    @classmethod
    def of(cls, name: str, status: os.stat_result) -> Found:
        return cls(name, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True, slots=True)
class _Pause:
    length_s: float
    until_s: float  # on the monotonic clock


class QueueFolder:
    """Files in, once each.  One thread uses an object at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prefix = f"{path}/"  # joining paths as objects was a fifth of what a file costs
        self.rejected = path.parent / "rejected"
        self._aside: dict[Found, _Pause] = {}  # cannot be read, moved or removed: not before the pause is over

    def prepare(self) -> None:
        """Create the folder; OSError if that is not possible."""
        self.path.mkdir(parents=True, exist_ok=True)

    def scan(self) -> list[Found]:
        """The files that wait, oldest first (by modification time, then name), at most `SCAN_MAX`."""
        most = SCAN_MAX + len(self._aside)  # these take no place of others
        try:
            found = [Found._make(file) for file in scan_files(self.path, SUFFIX, most)]
        except FileNotFoundError:
            self.prepare()
            return []
        if not self._aside:
            return found
        now_s = time.monotonic()
        waiting = {file: pause for file in found if (pause := self._aside.get(file)) is not None}
        if len(found) < most:
            self._aside = waiting  # without those that are gone
        return [file for file in found if file not in waiting or waiting[file].until_s <= now_s][:SCAN_MAX]

    def read_plain(self, files: Sequence[Found]) -> list[bytes | None]:
        """The content of each that there is nothing to say about; for the others (None) ask `read`."""
        return read_files(self.path, files, _AT_ONCE_BYTES)

    def remove_plain(self, files: Sequence[Found]) -> list[bool]:
        """Remove them; for those that stay (False) ask `remove`."""
        return remove_files(self.path, files)

    def read(self, file: Found) -> bytes | None:
        """The content, or None for a file that is gone or still changes; `TaskError` if it can never be read.

        OSError for what may pass, as a lack of descriptors or a network file system that does not answer: the file
        is then set aside for a while.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block the scan
        try:
            descriptor = os.open(self._prefix + file.name, flags)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _PASSING:
                self._set_aside(file)
                raise
            if error.errno in {errno.ELOOP, errno.ENXIO}:
                raise TaskError(Problem("", "is no regular file; links, pipes and sockets are not read")) from None
            raise TaskError(Problem("", f"cannot be read: {error.strerror}; check its owner and mode")) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise TaskError(Problem("", "is no regular file; only regular files are read"))
            if _is_being_written(descriptor, status):
                return None
            if status.st_size > FILE_BYTES:
                size = f"{status.st_size} bytes"
                raise TaskError(
                    Problem("", f"is {size} long, the limit is {FILE_BYTES}; put the data into other files")
                )
            data = _read_all(descriptor, status.st_size)
            return data if Found.of(file.name, os.fstat(descriptor)) == file else None
        except OSError:
            self._set_aside(file)
            raise
        finally:
            os.close(descriptor)

    def remove(self, file: Found) -> None:
        """Remove `file` unless another version has taken its name since; a missing one is fine."""
        path = self._prefix + file.name
        try:
            if Found.of(file.name, os.lstat(path)) == file:
                os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError:
            self._set_aside(file)
            raise

    def reject(self, file: Found, reason: str) -> Path:
        """Move `file` to `rejected/` with `STEM.reason` beside it; returns where it went."""
        try:
            self.rejected.mkdir(exist_ok=True)
            stem = next(self._free_stems(file.stem))
            target = self.rejected / f"{stem}{SUFFIX}"
            # The reason first: a crash in between leaves a reason without a file, never a file without its reason.
            (self.rejected / f"{stem}.reason").write_text(f"{reason}\n", encoding="utf-8", errors="backslashreplace")
            try:
                os.rename(self.path / file.name, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                shutil.move(self.path / file.name, target)
        except FileNotFoundError:
            raise
        except OSError:
            self._set_aside(file)
            raise
        return target

    def _set_aside(self, file: Found) -> None:
        """Leave it alone, for twice as long each time."""
        before = self._aside.get(file)
        length_s = _PAUSE_S[0] if before is None else min(2 * before.length_s, _PAUSE_S[1])
        self._aside[file] = _Pause(length_s, time.monotonic() + length_s)

    def _free_stems(self, stem: str) -> Iterator[str]:
        yield from (
            candidate
            for candidate in (stem, *(f"{stem}.{number}" for number in range(1, 1_000_000)))
            if not os.path.lexists(self.rejected / f"{candidate}{SUFFIX}")
        )


def _is_being_written(descriptor: int, status: os.stat_result) -> bool:
    """Whether a writer has the file open.

    The kernel grants a read lease only on a file that nobody has open for writing (fcntl(2),
    F_SETLEASE), which is exact and needs no waiting.  It is given back at once; SIGURG, ignored by
    default, stands in for SIGIO should a writer come in between.  Where there are no leases (not our
    file, a network file system) a file must have rested for `QUIET_S`.
    """
    try:
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return True
        return abs(time.time() - status.st_mtime) < QUIET_S
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _read_all(descriptor: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
