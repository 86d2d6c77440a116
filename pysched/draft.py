"""Tasks read for the store alone: what a row needs, without a `Task`.

Making a `Task` fills in two dozen defaults, which `Task.spec` takes out again.  A draft is checked by the very same
declarations, of the fields that are given, and its spec is the same text.  What is wrong with a task `parse_task` says:
a draft is there or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from pysched import task
from pysched.model import Priority, TaskType, new_id
from pysched.resources import Demand
from pysched.task import BATCH_TASKS, Task

_PIECE_BYTES = 64 * 1024  # of an array that is read at once: other threads wait for so long …
_PIECE_MOST = 1024 * 1024  # … or at most so long, where objects do not end as they are expected to


class Draft:
    """What the store asks of a new task, under the names of `Task`."""

    __slots__ = ("_spec", "after", "delay_s", "demand", "id", "name", "priority", "rank", "type")

    def __init__(self, given: Mapping[str, Any]) -> None:
        """`given` has been validated."""
        get = given.get
        self.id: str | None = get("id") or new_id()
        self.name: str | None = get("name")
        self.type: TaskType = get("type", TaskType.SYSTEM)
        self.priority: Priority = get("priority", Priority.MED)
        self.rank: int = get("rank", 0)
        self.delay_s: float = get("delay_s", 0)
        self.after: list[str] = get("after") or []
        self.demand: Demand | None = task.demand(self.type, get("cpus"), get("mem"), get("gpus"))
        self._spec = _spec(given)

    def spec(self) -> str:
        """As `Task.spec`."""
        return self._spec


Entry = Task | Draft  # what can be accepted


def draft(data: bytes) -> Draft | None:
    """One task from JSON text, with an id made for it if it has none; None unless `parse_task` accepts it as well."""
    try:
        return _checked(_read(data))
    except ValueError:  # pydantic's is one
        return None


def drafts(data: bytes) -> Iterator[Entry]:
    """A JSON array of tasks, as `parse_tasks`, each with an id; raises what that raises.

    A long one is read in pieces, cut where an object seems to end.  What is a whole array up to there has been cut
    right; where it is not, or a task is wrong, all is looked at once more, exactly, by `task.pieces`.
    """
    count, start = 0, data.find(b"[") + 1
    while start:
        piece, after = _piece(data, start)
        found = _all_of(piece) if len(piece) <= _PIECE_MOST else []
        if not found:
            break
        count = _counted(count, found)
        yield from found
        if not after:
            return
        start = after
    seen = 0
    for part in task.pieces(data):
        found = _all_of(part) or [each.identified() for each in task.parse_piece(part, seen)]
        yield from found[max(0, count - seen) :]
        seen = _counted(seen, found)


def _all_of(piece: str | bytes) -> list[Entry]:
    """The tasks of an array; none if something is wrong about one of them."""
    try:
        return [*map(_checked, _read_many(piece))]
    except ValueError:
        return []


def _piece(data: bytes, start: int) -> tuple[bytes, int]:
    """An array of what begins there, and where the next piece begins; 0 if this is the last one."""
    end = data.find(b"},", start + _PIECE_BYTES) + 1 if len(data) - start > _PIECE_BYTES else 0
    if not end:
        return (data if start == data.find(b"[") + 1 else b"[" + data[start:]), 0
    head = data[: start - 1] if start == data.find(b"[") + 1 else b""  # what must not be there is refused with it
    return b"%b[%b]" % (head, data[start:end]), end + 1


def _counted(before: int, found: list[Entry]) -> int:
    if before + len(found) > BATCH_TASKS:
        raise task.too_many()
    return before + len(found)


def _checked(given: Mapping[str, Any]) -> Draft:
    task.check_together(given)
    return Draft(given)


def _spec(given: Mapping[str, Any]) -> str:
    """JSON without id and defaults, in the order of names."""
    parts = []
    for name in sorted(given):
        value = given[name]
        if value == _DEFAULTS[name]:
            continue
        if name in _WRITTEN:
            parts.append(f'"{name}":"{_WRITTEN[name](value)}"')
        elif name != "id":
            parts.append(f'"{name}":{_text(value) if type(value) is str else task.dump(value)}')
    return "{" + ",".join(parts) + "}"


_text = json.JSONEncoder(ensure_ascii=False).encode  # of a text alone: one call of C
_WRITTEN: Mapping[str, Callable[[Any], str]] = {
    "type": lambda kind: cast("str", kind.value),
    "priority": lambda priority: cast("str", priority.name),
}
_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in Task.model_fields.items()}


def _given() -> Any:
    """A mapping of the fields that are given: the type that pydantic checks as it would `Task`."""
    fields = {name: field.rebuild_annotation() for name, field in Task.model_fields.items()}
    given = cast(Any, TypedDict)("given", fields, total=False)
    given.__pydantic_config__ = ConfigDict(**Task.model_config)
    return given


_ONE: Any = _given()
_MANY: Any = Annotated[list[_ONE], Field(max_length=BATCH_TASKS)]
_read: Callable[[bytes], Mapping[str, Any]] = TypeAdapter(_ONE).validator.validate_json
_read_many: Callable[[str | bytes], list[Mapping[str, Any]]] = TypeAdapter(_MANY).validator.validate_json
