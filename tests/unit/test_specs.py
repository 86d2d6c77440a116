"""Equal specs are read once, and no more of them are kept than that."""

from __future__ import annotations

import pytest

from pysched.engine.specs import Specs
from pysched.errors import TaskError
from pysched.task import SpecWriter, Task


def test_equal_text_gives_the_same_task() -> None:
    specs = Specs()
    task = Task(id="a", command=["/bin/true"], max_retries=7)
    first = specs.read(task.spec())
    assert first is specs.read(Task(id="b", command=["/bin/true"], max_retries=7).spec())
    assert first == task.model_copy(update={"id": None})
    assert specs.read(Task(command=["/bin/false"]).spec()) != first


def test_many_and_long_ones_are_read_and_not_kept() -> None:
    specs = Specs()
    first = specs.read("{}")
    for number in range(1_000):
        assert specs.read(Task(command=[str(number)]).spec()).command == [str(number)]
    long = Task(command=["x" * 100_000]).spec()
    assert specs.read(long) == specs.read(long)
    assert specs.read(long) is not specs.read(long)
    assert specs.read("{}") is not first


def test_what_a_newer_version_wrote_is_refused_each_time() -> None:
    specs = Specs()
    for _ in range(2):
        with pytest.raises(TaskError):
            specs.read('{"command":"true","from_the_future":1}')


def test_specs_of_like_tasks_are_those_of_each() -> None:
    tasks = [
        Task(id="a", command=["true"]), Task(id="b", command=["true"]), Task(id="c", command=["false"]),
        Task(id="d", params={"n": 1}), Task(id="e", params={"n": 1.0}), Task(id="f", params={"n": True}),
        Task(id="g"), Task(id="h"),
    ]  # fmt: skip
    writer = SpecWriter()
    assert [writer.of(task) for task in tasks] == [task.spec() for task in tasks]
