"""`ID.done` files: written atomically, after the terminal commit, and durable before the store forgets to deliver."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from pysched.model import Record

_OPEN_AT_ONCE = 128  # files


class CompletedFolder:
    """Writes records as `ID.done`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Create the folder, and remove what a crash left half-written."""
        self.path.mkdir(parents=True, exist_ok=True)
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(".") and entry.name.endswith(".done.tmp"):
                    os.unlink(entry.path)

    def write(self, records: Sequence[Record]) -> None:
        """All of them, durably; OSError if one cannot be written (writing it again later is fine).

        Each file is complete and durable under a temporary name before it gets its own, and the folder is synced
        once for the batch, so a reader or a crash sees all of a file or none of it.
        """
        for start in range(0, len(records), _OPEN_AT_ONCE):
            self._write_some(records[start : start + _OPEN_AT_ONCE])
        self._sync_folder()

    def _write_some(self, records: Sequence[Record]) -> None:
        temporary = {record.id: self.path / f".{record.id}.done.tmp" for record in records}
        try:
            with ExitStack() as stack:
                files = [self._write_file(stack, temporary[record.id], encode(record)) for record in records]
                # All begin to go to the disk before the first is waited for: one commit of the journal serves many.
                for descriptor in files:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                for descriptor in files:
                    os.fsync(descriptor)
            for task_id, path in temporary.items():
                os.rename(path, self.path / f"{task_id}.done")
        except BaseException:
            for path in temporary.values():
                path.unlink(missing_ok=True)
            raise

    @staticmethod
    def _write_file(stack: ExitStack, path: Path, data: bytes) -> int:
        """A new file with `data`, open until `stack` ends."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, descriptor)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        return descriptor

    def _sync_folder(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def encode(record: Record) -> bytes:
    """The content of a `.done` file; times are RFC 3339 in UTC."""
    return _ENCODER.encode({name: getattr(record, name) for name in _FIELDS}).encode() + b"\n"


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} in a record")


_FIELDS = [field.name for field in dataclasses.fields(Record)]
_ENCODER = json.JSONEncoder(default=_time, ensure_ascii=False)
