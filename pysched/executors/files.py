"""Where the files of an attempt lie: stdout, stderr and the result a job may leave."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pysched._core import is_missing
from pysched.model import Record

RESULT_BYTES = 64 * 1024
_OUTPUT = ".out"
_RESULT = ".result"
_PROGRESS = ".progress"
NAMES = (_OUTPUT, ".err", _RESULT, _PROGRESS)
# As the store and `.done` files have it; `json.dumps` makes an encoder each time.
_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
_encode_unescaped = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_SHARDS = 256  # folders, so that none grows to a million entries


class AttemptFiles(NamedTuple):
    """Absolute paths of one attempt's files."""

    stdout: str
    stderr: str
    result: str
    progress: str


class LogFolder:
    """`ROOT/ab/ID.ATTEMPT.{out,err,result,progress}`, `ab` being a hash of the id."""

    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._shards = [f"{root}/{shard:02x}/" for shard in range(_SHARDS)]

    def prepare(self) -> None:
        """Create all folders at once, so that starting an attempt never has to."""
        for shard in self._shards:
            os.makedirs(shard, mode=0o700, exist_ok=True)

    def of(self, task_id: str, attempt: int) -> AttemptFiles:
        stem = self.stem(task_id, attempt)
        return AttemptFiles(*[stem + name for name in NAMES])

    def forget_results(self, records: Iterable[Record]) -> None:
        """Of ends that an incarnation before may have committed, and then been killed before it removed these files."""
        for record in records:
            if record.result is not None and record.stdout is not None and record.stdout.startswith(self._root):
                remove_result(record.stdout)

    def stem(self, task_id: str, attempt: int) -> str:
        """What is common to the paths of an attempt's files; the rest is one of `NAMES`."""
        return f"{self._shards[zlib.crc32(task_id.encode()) % _SHARDS]}{task_id}.{attempt}"


def read_result(path: str) -> tuple[str | None, str | None]:
    """(JSON text, None) of what the job left at `path`, or (None, why it cannot be used); removes the file of the job's
    progress.

    A good result stays where it is until it is recorded (`remove_result`): should the node die before, the next
    incarnation reads it again.
    """
    progress = f"{path.removesuffix(_RESULT)}{_PROGRESS}"
    if not is_missing(progress):
        with contextlib.suppress(OSError):
            os.unlink(progress)
    if is_missing(path):
        return None, None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"the result cannot be read: {error.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None, "the result is no regular file"
        data = os.read(descriptor, RESULT_BYTES + 1)
    finally:
        os.close(descriptor)
    text, problem = check_result(data)
    if problem is not None:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return text, problem


def check_result(data: bytes) -> tuple[str | None, str | None]:
    """(JSON text, None) of what a job left as its result, or (None, why it cannot be used)."""
    try:
        return _read(data)[1], None
    except ValueError as error:
        return None, str(error)


def result_texts(data: bytes) -> tuple[str, bytes] | None:
    """A result's JSON for the store and for its `.done` file; None: `check_result` says what is wrong, or it has no
    UTF-8."""
    try:
        value, text = _read(data)
        return text, _encode_unescaped(value).encode()
    except ValueError:  # also half of a pair
        return None


def _read(data: bytes) -> tuple[object, str]:
    """Value and JSON text; a `ValueError` says what is wrong."""
    if len(data) > RESULT_BYTES:
        raise ValueError(f"the result is longer than {RESULT_BYTES} bytes")
    try:
        value = json.loads(data)
        text = _encode(value)
    except (ValueError, RecursionError):
        raise ValueError("the result is no JSON") from None
    if "\\u0000" in text:
        raise ValueError("the result contains a NUL character")
    return value, text


def remove_log(path: str) -> None:
    """The log itself, and with that of standard output what else a crash may have left of the attempt."""
    stem = path.removesuffix(_OUTPUT)
    others = () if stem == path else (f"{stem}{_RESULT}", f"{stem}{_PROGRESS}")
    for each in (path, *others):
        with contextlib.suppress(OSError):
            os.unlink(each)


def remove_result(stdout: str) -> None:
    """Of the attempt whose log of standard output that is."""
    with contextlib.suppress(OSError):
        os.unlink(f"{stdout.removesuffix(_OUTPUT)}{_RESULT}")
