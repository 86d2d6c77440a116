"""The two formats of a `.task` file (CONTRACT § Files): a JSON object, or lines of `key: value`."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping

from pysched.errors import Problem, TaskError
from pysched.model import is_valid_id
from pysched.task import FIELDS, Task, parse_task

FILE_BYTES = 1024 * 1024
_KEPT_BYTES = 4_096  # a longer file is seldom like another
_IGNORED = frozenset({"attempts", "created_at_ms"})  # fields of the seed's files
_TEXT_FIELDS = frozenset({"id", "name", "type", "priority", "entrypoint", "cwd", "mem"})  # the others hold JSON


def parse_task_file(stem: str, data: bytes) -> Task:
    """The task in `data`, the content of `STEM.task`; raises `TaskError` with line numbers.

    Without a field `id` the id derives from the file's name: the name itself where it is a valid id.
    """
    if len(data) <= _KEPT_BYTES:
        task = _parsed(data)
        if task.id is not None:
            return task
        if not task.after:  # which may not name the task itself
            return task.named(id_from_stem(stem))
    return _parse(data, stem)


@functools.lru_cache(maxsize=64)
def _parsed(data: bytes) -> Task:
    """Without an id if `data` has none: files are often alike but for their names."""
    return _parse(data, None)


def _parse(data: bytes, stem: str | None) -> Task:
    text = _decode(data)
    if text.lstrip()[:1] in {"{", "["}:
        fields, lines = _read_json(text)
    else:
        fields, lines = _read_lines(text)
    fields = {name: value for name, value in fields.items() if name not in _IGNORED}
    if fields.get("id") is None and stem is not None:
        fields["id"] = id_from_stem(stem)
    try:
        return parse_task(fields)
    except TaskError as error:
        raise TaskError(*(_located(problem, lines) for problem in error.problems)) from None


def id_from_stem(stem: str) -> str:
    """`stem` if it is a valid id, else its valid characters and a digest that keeps different names apart."""
    if is_valid_id(stem):
        return stem
    digest = hashlib.sha256(stem.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:100]
    return f"{readable}-{digest}" if readable else f"task-{digest}"


def _decode(data: bytes) -> str:
    if len(data) > FILE_BYTES:
        raise TaskError(Problem("", f"is larger than {FILE_BYTES} bytes; put the data into files and name them"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TaskError(Problem("", f"byte {error.start} is not UTF-8; save the file as UTF-8", line)) from None
    if not text.strip():
        raise TaskError(Problem("", "the file is empty; write a JSON object or lines of `key: value`", 1))
    return text


def _read_json(text: str) -> tuple[dict[str, object], dict[str, int]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problem = Problem("", f"is no valid JSON ({error.msg}); write one JSON object", error.lineno)
        raise TaskError(problem) from None
    except (RecursionError, ValueError):  # a number of more digits than Python converts, nesting without end
        raise TaskError(Problem("", "is JSON beyond all measure; write one flat JSON object", 1)) from None
    if not isinstance(value, dict):
        raise TaskError(Problem("", "is JSON but no object; a file holds one task, as one JSON object", 1))
    lines = {}
    for name in value:
        key = re.search(re.escape(json.dumps(name)) + r"\s*:", text) or re.search(re.escape(f'"{name}"'), text)
        lines[name] = text.count("\n", 0, key.start()) + 1 if key else 1
    return value, lines


def _read_lines(text: str) -> tuple[dict[str, object], dict[str, int]]:
    fields: dict[str, object] = {}
    lines: dict[str, int] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        name, value = name.rstrip(), value.lstrip()
        if not colon:
            raise TaskError(Problem("", f"{line[:40]!r} has no colon; write `key: value`", number))
        if name in lines:
            raise TaskError(Problem(name, f"stands in line {lines[name]} too; keep one", number))
        lines[name] = number
        fields[name] = _value(name, value, number)
    return fields, lines


def _value(name: str, value: str, line: int) -> object:
    is_list = name == "command" and value.startswith("[") and value.endswith("]")
    if name in _TEXT_FIELDS or name not in FIELDS or (name == "command" and not is_list):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        if is_list:  # `[ -e file ] && [ -d dir ]` is a command line of the shell
            return value
        raise TaskError(
            Problem(name, f"{value[:40]!r} is no JSON value; write a number, list or object", line)
        ) from None


def _located(problem: Problem, lines: Mapping[str, int]) -> Problem:
    return Problem(problem.field, problem.message, lines.get(problem.field.partition(".")[0], 1))
