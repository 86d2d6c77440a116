"""Drafts are the tasks that `parse_task` makes: the same row, or none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched.draft import Draft, Entry, draft, drafts
from pysched.errors import TaskError
from pysched.task import Task, parse_task, parse_tasks

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
    "reuse": st.booleans(),
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


def test_an_array() -> None:
    tasks: list[dict[str, Any]] = [{"id": f"t{number}", "command": "x" * 500} for number in range(1200)]
    data = json.dumps(tasks).encode()  # longer than a piece
    found, expected = [*drafts(data)], [*parse_tasks(data)]
    assert [each.id for each in found] == [task["id"] for task in tasks]
    assert [*map(row, found)] == [*map(row, expected)]
    assert all(isinstance(each, Draft) for each in found)


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
