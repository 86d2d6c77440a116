"""`ID.done` files: written atomically, after the terminal commit, and durable before the store forgets to deliver."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from pysched.model import Record


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

        Each file is complete under a temporary name before it gets its own, and the folder is synced
        once for the batch, so a reader or a crash sees all of a file or none of it.
        """
        for record in records:
            temporary = self.path / f".{record.id}.done.tmp"
            try:
                self._write_file(temporary, encode(record))
                os.rename(temporary, self.path / f"{record.id}.done")
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        self._sync_folder()

    @staticmethod
    def _write_file(path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync_folder(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def encode(record: Record) -> bytes:
    """The content of a `.done` file; times are RFC 3339 in UTC."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return json.dumps(fields, default=_time, ensure_ascii=False, indent=1).encode() + b"\n"


def _time(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} in a record")
