"""How far a running task says that it is: what it wrote into the file that PYSCHED_PROGRESS named."""

from __future__ import annotations

import json
import os
import stat

from pysched.api.backend import Row
from pysched.api.context import Context
from pysched.model import State

PROGRESS_BYTES = 4 * 1024


def progress_of(shared: Context, task: Row) -> object:
    """JSON, or else text; None for a task that does not run, on another machine, or says nothing."""
    if task["status"] != State.RUNNING.value or not task["attempts"] or shared.log_files is None:
        return None
    data = _read(shared.log_files(task["id"], task["attempts"][-1]["attempt"]).progress)
    text = data.decode("utf-8", "replace").strip().replace("\0", "\ufffd")
    try:
        return json.loads(text, parse_constant=lambda name: None) if text else None
    except (ValueError, RecursionError):
        return text


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
