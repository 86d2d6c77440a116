"""Outcomes on the node's own disk while the store does not answer, so that no crash of the node loses them.

::

    outcomes ─► SPOOL/.N.tmp ─ fsync ─ rename ─ fsync folder ─► SPOOL/N.jsonl ─ all of the spool recorded ─► removed

Each write is a file of its own, complete or not there, and never written to again: a failed fsync is followed by
another file with the same content, not by another fsync of the same one, which might succeed without the data.
What is found at a start is recorded before anything is recovered; writing an outcome twice is once (the fence).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pysched.model import AttemptKey, Exit, Outcome, State

SPOOL_BYTES = 256 * 2**20
_SUFFIX = ".jsonl"
_TIMES = ("started_at", "finished_at")


class Spool:
    """Belongs to the node that owns the home.  `full` may be read by any thread, the rest is one thread's."""

    def __init__(self, folder: Path, *, limit_bytes: int = SPOOL_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._next = 1
        self._bytes = 0
        self._files: list[Path] = []
        self._failing = False  # the last append did

    def prepare(self) -> None:
        """Create the folder, see what is in it, remove what a crash left half-written; OSError if that fails."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.startswith("."):
                path.unlink()
        self._files = sorted(self._folder.glob(f"*{_SUFFIX}"))
        self._bytes = sum(path.stat().st_size for path in self._files)
        self._next = 1 + max((int(path.stem) for path in self._files), default=0)

    @property
    def has_room(self) -> bool:
        """Whether more may be appended."""
        return self._bytes < self._limit

    @property
    def full(self) -> bool:
        """Whether nothing more should be started, since its outcome could not be kept: no room, or the disk fails."""
        return not self.has_room or self._failing

    def __bool__(self) -> bool:
        return bool(self._files)

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Keep `outcomes` durably; OSError if that cannot be, and then nothing is kept of them."""
        path = self._folder / f"{self._next:012}{_SUFFIX}"
        data = b"".join(_encode(outcome) for outcome in outcomes)
        try:
            _write_new(self._folder / f".{path.stem}.tmp", path, data)
        except OSError:
            self._failing = True
            raise
        self._failing = False
        self._next += 1
        self._bytes += len(data)
        self._files.append(path)

    def read(self) -> Iterator[list[Outcome]]:
        """All that is kept, a file at a time; ValueError for one that another version must have written."""
        for path in self._files:
            yield [_decode(line) for line in path.read_bytes().splitlines()]

    def clear(self) -> None:
        """All of it is recorded; OSError if that cannot be noted, which only means that it is recorded once more."""
        for path in self._files:
            path.unlink(missing_ok=True)
        self._files = []
        self._bytes = 0
        self._failing = False
        _sync_folder(self._folder)


def _write_new(temporary: Path, path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
        _sync_folder(path.parent)
    except OSError:
        for name in (temporary, path):
            with suppress(OSError):
                name.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(outcome: Outcome) -> bytes:
    fields = {**dataclasses.asdict(outcome), "key": outcome.key._asdict()}
    return json.dumps(fields, default=datetime.isoformat, ensure_ascii=True).encode() + b"\n"


def _decode(line: bytes) -> Outcome:
    try:
        fields: dict[str, Any] = json.loads(line)
        end = fields.pop("exit")
        for name in _TIMES:
            end[name] = None if end[name] is None else datetime.fromisoformat(end[name])
        for name in ("attempt_state", "next_state"):
            fields[name] = State(fields[name])
        return Outcome(key=AttemptKey(**fields.pop("key")), exit=Exit(**end), **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no outcome: {error}") from None
