"""Drafts are the tasks that `parse_task` makes: the same row, or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched import draft as draft_module
from pysched.draft import Draft, Entry, draft, drafts
from pysched.errors import TaskError
from pysched.task import BATCH_TASKS, Task, parse_task, parse_tasks

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TEXT = st.text(max_size=5) | st.sampled_from(["", "\\", '"', "\u2028", "a\tb", "\0", "é", "x" * 300])
NUMBER = st.integers(-2, 5) | st.floats(-1, 100) | st.sampled_from([0, 0.5, 5, 5.0, 100, 3, True, 2**40])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "id": st.sampled_from(["a", "b-1", "-", None]),
    "name": TEXT | st.none(),
    "type": st.sampled_from(["ml", "system", "ML"]),
    "priority": st.sampled_from(["HIGH", "med", "Low", "urgent", 1]),
    "rank": NUMBER,
    "command": TEXT | st.lists(TEXT, max_size=2) | st.none(),
    "entrypoint": st.sampled_from(["m:f", "m", None]),
    "params": st.dictionaries(TEXT, JSON, max_size=3),
    "reuse": st.booleans() | st.none(),
    "duration_ms": NUMBER,
    "max_retries": NUMBER,
    "retry_delay_s": NUMBER,
    "timeout_s": NUMBER | st.none(),
    "grace_s": NUMBER,
    "delay_s": NUMBER,
    "after": st.lists(st.sampled_from(["a", "b", "!"]), max_size=2),
    "env": st.dictionaries(st.sampled_from(["A", "b", "1", "PYSCHED_X"]), TEXT, max_size=2),
    "cwd": st.sampled_from(["/", "/tmp", "x", None]),
    "cpus": NUMBER | st.none(),
    "mem": st.sampled_from(["512MiB", 2**30, "much", 1, None]),
    "gpus": NUMBER | st.none(),
    "tags": st.lists(TEXT, max_size=2),
    "traceparent": st.sampled_from([TRACE, "00", None]),
    "tracestate": st.sampled_from(["a=1", None]),
    "nonsense": st.none(),
}


def row(task: Entry) -> tuple[object, ...]:
    return (
        task.name, task.type, task.priority, task.rank, task.delay_s, list(task.after), task.demand, task.spec(),
    )  # fmt: skip


def told(data: bytes) -> Task | None:
    try:
        return parse_task(data)
    except TaskError:
        return None


def held(found: Draft | None, expected: Task | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert row(found) == row(expected)
        assert found.id == expected.id if expected.id is not None else found.id


def test_every_field_is_tried() -> None:
    assert FIELDS.keys() - {"nonsense"} == Task.model_fields.keys()


@given(names=st.lists(st.sampled_from(sorted(FIELDS)), max_size=5, unique=True), data=st.data())
def test_a_draft_is_the_task(names: list[str], data: st.DataObject) -> None:
    body = json.dumps({name: data.draw(FIELDS[name]) for name in names}).encode()
    held(draft(body), told(body))


@pytest.mark.parametrize("name", sorted(FIELDS))
@given(data=st.data())
def test_each_field_alone(name: str, data: st.DataObject) -> None:
    body = json.dumps({name: data.draw(FIELDS[name])}).encode()
    held(draft(body), told(body))


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'"x"', b"{}", b'{"id":"a","id":"b"}', b"\xff", b"{}{}"])
def test_what_is_no_object(body: bytes) -> None:
    held(draft(body), told(body))


DEEP = {"deep": [{"a": "},{"}, {"b": '"},'}]}
TASKS: list[dict[str, Any]] = [{"id": f"t{number}", "command": "x" * 500, "params": DEEP} for number in range(1200)]


def outcome(read: Callable[[], Iterable[Entry]]) -> list[object]:
    """The rows, or the error."""
    try:
        return [*map(row, read())]
    except TaskError as error:
        return [str(error), error.index]


def compared(data: bytes) -> None:
    """The drafts are the tasks, or wrong in the same words."""
    assert outcome(lambda: drafts(data)) == outcome(lambda: parse_tasks(data))


@pytest.mark.parametrize("indent", [None, 2], ids=["in a line", "indented"])
@pytest.mark.parametrize("separators", [(",", ":"), (" ,", ": ")], ids=["near", "far"])
def test_an_array(monkeypatch: pytest.MonkeyPatch, indent: int | None, separators: tuple[str, str]) -> None:
    data = b" " + json.dumps(TASKS, indent=indent, separators=separators).encode() + b"\n"
    for piece in (64 * 1024, 700, 10):  # ends in the middle of tasks, too
        monkeypatch.setattr(draft_module, "_PIECE_BYTES", piece)
        compared(data)
        found = [*drafts(data)]
        assert [each.id for each in found] == [task["id"] for task in TASKS]


def test_most_of_a_long_array_are_drafts() -> None:
    assert all(isinstance(each, Draft) for each in drafts(json.dumps(TASKS).encode()))


@pytest.mark.parametrize("most", [64 * 1024 * 1024, 1])
@pytest.mark.parametrize(
    "text",
    [
        "[]", "[ ]", "", "{}", "x[{}]", "[{}", "[{}]]", "[{}]x", "[{},]", "[,{}]", "[{},{}", "[{},,{}]", "null", '["',
        '[{"id":"a"},{"id":1}]', '[{"id":"a"},{}x]', "[[{}],{}]", '[{"command":"},{"},{"rank":2}]',
        '[{"params":{"a":[{},{}]}},{}]',
    ],
)  # fmt: skip
def test_what_is_no_array_of_tasks(monkeypatch: pytest.MonkeyPatch, text: str, most: int) -> None:
    monkeypatch.setattr(draft_module, "_PIECE_BYTES", 1)
    monkeypatch.setattr(draft_module, "_PIECE_MOST", most)
    compared(text.encode())
    compared(text.replace("},{", "} , {").encode())


def test_too_many() -> None:
    compared(b"[" + b"{}," * BATCH_TASKS + b"{}]")
    compared(b"[" + b"{}," * (BATCH_TASKS - 1) + b"{}]")


def test_a_wrong_one_in_an_array_is_named() -> None:
    tasks: list[dict[str, Any]] = [{"command": "x" * 500} for _ in range(1200)]
    tasks[900] = {"comand": "x"}
    with pytest.raises(TaskError, match="did you mean command") as caught:
        [*drafts(json.dumps(tasks).encode())]
    assert caught.value.index == 900


def test_a_draft_without_an_id_gets_one() -> None:
    one, other = draft(b"{}"), draft(b'{"id":null}')
    assert one is not None
    assert other is not None
    assert one.id
    assert other.id
    assert one.id != other.id
