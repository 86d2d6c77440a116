"""The demo's judgement: right is right, and each kind of wrong is noticed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pysched.demo import workload
from pysched.demo.report import Run
from pysched.task import parse_task


def test_the_workload_is_what_the_readme_says() -> None:
    tasks = workload.build(500, 0.3, seed=1)
    kinds = Counter(item.kind for item in tasks)
    assert sum(kinds.values()) == 500
    assert kinds["train"] + kinds["infer"] == 150
    assert (kinds["flaky"], kinds["failing"], kinds["hanging"]) == (5, 3, 2)
    assert {kind for kind in kinds if kind in {"hash", "compress", "sort", "count"}} == {
        "hash",
        "compress",
        "sort",
        "count",
    }
    assert {item.task["priority"] for item in tasks} == {"HIGH", "MED", "LOW"}
    for item in tasks:
        parse_task(item.task)


@pytest.mark.parametrize("count", [1, 7, 20])
def test_a_small_workload_has_its_size(count: int) -> None:
    assert len(workload.build(count, 0.3, seed=2)) == count


def a_run(**change: Any) -> Run:
    item = workload.Expected(task={"id": "a"}, kind="hash", result_is_right=lambda result: result == 5)
    record = {"id": "a", "status": "succeeded", "reason": None, "attempts": 1, "node": "n", "result": 5}
    parts: dict[str, Any] = {"records": {"a": record}, "done": {"a": dict(record)}, **change}
    return Run(expected=[item], submit_s=[0.1], workers=1, **parts)


def test_all_well() -> None:
    assert a_run().mistakes() == []


@pytest.mark.parametrize(
    ("field", "value"), [("status", "failed"), ("reason", "exit 1"), ("attempts", 2), ("result", 6), ("node", "m")]
)
def test_each_difference_is_a_mistake(field: str, value: object) -> None:
    wrong = {**a_run().records["a"], field: value}
    assert a_run(done={"a": wrong}).mistakes() != []


def test_missing_and_unknown_are_mistakes() -> None:
    assert a_run(records={}).mistakes() != []
    assert a_run(done={}).mistakes() != []
    one = a_run().records["a"]
    assert a_run(records={"a": one, "b": one}).mistakes() != []
    assert a_run(done={"a": one, "b": one}).mistakes() != []
