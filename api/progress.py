"""How far a running task says that it is: what it wrote into the file that PYSCHED_PROGRESS named."""

from __future__ import annotations

import json
import os
import stat

from pysched.api.backend import Row
from pysched.api.context import Context
from pysched.errors import StoreError
from pysched.model import State
from pysched.selection import Selection

PROGRESS_BYTES = 4 * 1024
REPORTED = 1_000  # running tasks that metrics tell of


def progress_of(shared: Context, task: Row, attempt: int) -> object:
    """JSON, or else text; None for a task that does not run, on another machine, or says nothing."""
    if task["status"] != State.RUNNING.value or not attempt or shared.log_files is None:
        return None
    data = _read(shared.log_files(task["id"], attempt).progress)
    text = data.decode("utf-8", "replace").strip().replace("\0", "\ufffd")
    try:
        return json.loads(text, parse_constant=lambda name: None) if text else None
    except (ValueError, RecursionError):
        return text


def fractions(shared: Context) -> list[tuple[str, str, float]]:
    """(id, name, 0 … 1) of the running tasks that say so in a number, the newest `REPORTED`; none if the store does not
    answer."""
    try:
        rows = shared.store.page(Selection(states=(State.RUNNING,)), limit=REPORTED, before=None).rows
    except StoreError:
        return []
    told = ((row["id"], row["name"], _fraction(progress_of(shared, row, row["attempts"]))) for row in rows)
    return [(task_id, name, fraction) for task_id, name, fraction in told if fraction is not None]


def _fraction(progress: object) -> float | None:
    value = progress.get("fraction") if isinstance(progress, dict) else progress
    return float(value) if type(value) in (int, float) and 0 <= value <= 1 else None  # type: ignore[operator, arg-type]


def _read(path: str) -> bytes:
    """The job may have put anything there; only a regular file is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, PROGRESS_BYTES) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
