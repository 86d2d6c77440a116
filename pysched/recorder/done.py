"""`ID.done` files: written atomically, after the terminal commit, and durable before the store forgets to deliver."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime
from json.encoder import encode_basestring as _text
from pathlib import Path

from pysched._core import utc_text, write_files
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

        A reader or a crash sees all of a file or none of it.  Of two records of one task, which was run again, the
        later one counts.
        """
        last = {record.id: record for record in records}
        write_files(self.path, [(f"{task_id}.done", encode(record)) for task_id, record in last.items()])


def encode(record: Record) -> bytes:
    """The content of a `.done` file; times are RFC 3339 in UTC."""
    result = "null" if record.result is None else json.dumps(record.result, ensure_ascii=False)
    return (
        f'{{"id": "{record.id}", "name": {_text(record.name)}, "type": "{record.type}", '
        f'"priority": "{record.priority}", "status": "{record.status}", "reason": {_or_null(record.reason)}, '
        f'"exit_code": {_number(record.exit_code)}, "signal": {_or_null(record.signal)}, '
        f'"attempts": {record.attempts}, "node": {_or_null(record.node)}, '
        f'"submitted_at": {_time(record.submitted_at)}, "started_at": {_time(record.started_at)}, '
        f'"finished_at": {_time(record.finished_at)}, "wait_ms": {_number(record.wait_ms)}, '
        f'"run_ms": {_number(record.run_ms)}, "result": {result}, "stdout": {_or_null(record.stdout)}, '
        f'"stderr": {_or_null(record.stderr)}}}\n'
    ).encode()


def _or_null(text: str | None) -> str:
    return "null" if text is None else _text(text)


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


def _time(moment: datetime | None) -> str:
    return "null" if moment is None else f'"{utc_text(moment)}"'
