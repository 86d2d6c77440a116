"""Long arrays of tasks, which are read in pieces: the same as read whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pysched import task
from pysched.errors import TaskError
from pysched.task import BATCH_TASKS, parse_tasks


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_PIECE_CHARS", 1)
    monkeypatch.setattr(task, "_PIECE_TASKS", 3)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize(
    "encode", [json.dumps, lambda value: json.dumps(value, indent=2).encode(), lambda v: f" {json.dumps(v)}\n"]
)
def test_all_come_in_order(count: int, encode: Any) -> None:
    given = [{"id": f"t{number}", "command": 'a "],[{" \\ ü,'} for number in range(count)]
    assert [each.id for each in parse_tasks(encode(given))] == [each["id"] for each in given]


@pytest.mark.parametrize("bad", [0, 2, 3, 6])
def test_the_first_bad_one_is_named(bad: int) -> None:
    given: list[dict[str, Any]] = [{} for _ in range(7)]
    given[bad] = {"rank": "x"}
    with pytest.raises(TaskError) as caught:
        [*parse_tasks(json.dumps(given))]
    assert caught.value.index == bad
    assert caught.value.problems[0].field == "rank"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[{}",
        "[{}]]",
        "[{},]",
        "[,{}]",
        "[{} {}]",
        "",
        "nonsense",
        "[{}] x",
        '[{"rank": NaN}]',
        "[" * 100_000,
        b"[\xff]",
        "[1]",
        "[{},1]",
    ],
)
def test_what_is_no_array_of_tasks_is_refused(text: str | bytes) -> None:
    with pytest.raises(TaskError):
        [*parse_tasks(text)]


def test_an_empty_one_is_empty() -> None:
    assert [*parse_tasks("[ ]")] == []


def test_there_is_a_limit() -> None:
    with pytest.raises(TaskError, match=str(BATCH_TASKS)):
        next(parse_tasks("[" + "{}," * BATCH_TASKS + "{}]"))
