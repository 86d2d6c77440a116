"""Accepted tasks as `.task` files, for those who watch a folder.

The store is the truth: a file is written after the commit, and one that cannot be written is
logged and nothing else.  It carries the task's id and exactly its content, so a node that takes it in
finds the task known and removes the file; the task runs once.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import structlog

from pysched.task import Task

FILE_BYTES = 1024 * 1024  # the contract's limit; only a task of a batch, full of escapes, can pass it
TEMPORARY = ".mirror-"  # a name that no scanner takes
STALE_S = 60.0  # a temporary file this old has no writer any more: writing one takes milliseconds

_log = structlog.get_logger("mirror")


class Mirror:
    """Writes into one folder, which is made if missing; safe to use from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder and remove what a killed writer left in it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob(f"{TEMPORARY}*"):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > STALE_S:
                        path.unlink()
        except OSError as error:
            _log.warning("mirror folder unusable", folder=str(self._folder), error=str(error))

    def write(self, tasks: Iterable[Task]) -> None:
        """A file for each task; returns when all are on disk, logs those that are not."""
        for task in tasks:
            self._try_write(task)

    def _try_write(self, task: Task) -> None:
        try:
            self._write(f"{task.id}.task", file_text(task))
        except OSError as error:
            _log.warning("task not mirrored", id=task.id, folder=str(self._folder), error=str(error))

    def _write(self, name: str, text: bytes) -> None:
        if len(text) > FILE_BYTES:
            raise OSError(f"its file would be longer than {FILE_BYTES} bytes")
        temporary = self._folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # Not a rename: that would replace a file of the same name that somebody dropped and no node has read yet.
            os.link(temporary, self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def file_text(task: Task) -> bytes:
    """The task as a `.task` file: a JSON object that `parse_task` reads back to an equal task."""
    content = {"id": task.id, **json.loads(task.spec())}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
