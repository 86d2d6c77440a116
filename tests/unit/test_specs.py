"""Equal specs are read once, and no more of them are kept than that."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched.engine.specs import Specs
from pysched.errors import TaskError
from pysched.model import TaskType
from pysched.task import SpecWriter, Task


def test_equal_text_gives_the_same_task() -> None:
    specs = Specs()
    task = Task(id="a", command=["/bin/true"], max_retries=7)
    first, params = specs.read(task.spec())
    assert first is specs.read(Task(id="b", command=["/bin/true"], max_retries=7).spec())[0]
    assert (first, params) == (task.model_copy(update={"id": None}), "{}")
    assert specs.read(Task(command=["/bin/false"]).spec())[0] != first


def test_many_and_long_ones_are_read_and_not_kept() -> None:
    specs = Specs()
    first, _ = specs.read("{}")
    for number in range(1_000):
        assert specs.read(Task(command=[str(number)]).spec())[0].command == [str(number)]
    long = Task(command=["x" * 100_000]).spec()
    assert specs.read(long) == specs.read(long)
    assert specs.read(long)[0] is not specs.read(long)[0]
    assert specs.read("{}")[0] is not first


# What could be taken for the field itself, at each place where a spec has text or an object.
CONFUSING = st.sampled_from(['"params":{', '{"params":{}}', "params", '","params":{"', '\\"params":{', "}", "é"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CONFUSING,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(CONFUSING, inner, max_size=2),
    max_leaves=6,
)


@given(
    params=st.dictionaries(CONFUSING, JSON, max_size=3),
    env=st.dictionaries(st.sampled_from(["params", "other"]), CONFUSING, max_size=2),
    tags=st.lists(CONFUSING, max_size=2),
    kind=st.sampled_from([{"entrypoint": "a:b"}, {"entrypoint": "a:b", "reuse": True}, {}, {"duration_ms": 1}]),
    typed=st.booleans(),
)
def test_params_are_cut_out_of_a_spec_and_nothing_else(
    params: dict[str, Any], env: dict[str, str], tags: list[str], kind: dict[str, Any], typed: bool
) -> None:
    kind = {**kind, "type": TaskType.ML} if typed or "entrypoint" in kind else kind
    task = Task(id="a", params=params, env=env, tags=tags, **kind)
    found, text = Specs().read(task.spec())
    assert found == task.model_copy(update={"id": None, "params": {}})
    assert json.loads(text) == params


def test_tasks_that_differ_in_params_alone_are_one() -> None:
    specs = Specs()
    (one, first), (other, second) = (
        specs.read(Task(id=str(number), type=TaskType.ML, entrypoint="a:b", params={"n": number}).spec())
        for number in range(2)
    )
    assert one is other
    assert (first, second) == ('{"n":0}', '{"n":1}')


def test_what_a_newer_version_wrote_is_refused_each_time() -> None:
    specs = Specs()
    for _ in range(2):
        with pytest.raises(TaskError):
            specs.read('{"command":"true","from_the_future":1}')
        with pytest.raises(TaskError):
            specs.read('{"params":{"a":1},"type":"ml","yet_another":1}')
        with pytest.raises(TaskError):
            specs.read('{"params":{"a":')


def test_specs_of_like_tasks_are_those_of_each() -> None:
    tasks = [
        Task(id="a", command=["true"]), Task(id="b", command=["true"]), Task(id="c", command=["false"]),
        Task(id="d", params={"n": 1}), Task(id="e", params={"n": 1.0}), Task(id="f", params={"n": True}),
        Task(id="g"), Task(id="h"),
    ]  # fmt: skip
    writer = SpecWriter()
    assert [writer.of(task) for task in tasks] == [task.spec() for task in tasks]
