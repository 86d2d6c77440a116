"""From a full queue folder into `accept`, in batches: each file once, in order, and whatever fails on the way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pysched.errors import Problem, PyschedError, StoreError, TaskError
from pysched.intake.intake import BATCH, Intake
from pysched.model import Acceptance, State
from pysched.task import Task

FILES = 2 * BATCH + 500


class Store:
    """Accepts what it is given; fails at the calls whose numbers it is told."""

    def __init__(
        self, folder: Path, failing: frozenset[int] = frozenset(), refused: frozenset[str] = frozenset()
    ) -> None:
        self.folder = folder
        self.accepted: list[str] = []
        self.failing = failing
        self.refused = refused
        self.calls = 0

    def accept(self, tasks: Sequence[Task]) -> Sequence[Acceptance | PyschedError]:
        self.calls += 1
        for task in tasks:  # none is removed before the commit
            assert (self.folder / f"{task.id}.task").exists()
        if self.calls in self.failing:
            raise StoreError("the server is away")
        verdicts: list[Acceptance | PyschedError] = []
        for task in tasks:
            assert task.id is not None
            if task.id in self.refused:
                verdicts.append(TaskError(Problem("id", "is taken")))
            else:
                self.accepted.append(task.id)
                verdicts.append(Acceptance(id=task.id, state=State.QUEUED, created=True))
        return verdicts


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    folder = tmp_path / "queue"
    folder.mkdir()
    return folder


def fill(queue: Path, count: int) -> list[str]:
    """Their ids, oldest first."""
    names = [f"job-{number:05d}" for number in range(count)]
    for number, name in enumerate(reversed(names)):
        path = queue / f"{name}.task"
        path.write_text(f"duration_ms: {number % 7}\n")
        os.utime(path, ns=(0, 10**18 + (count - number) * 1_000))
    return names


def take(queue: Path, store: Store) -> None:
    intake = Intake(queue, store.accept, poll_s=1.0)
    intake.take_all()
    intake.stop()


def left(queue: Path) -> set[str]:
    return {name.removesuffix(".task") for name in os.listdir(queue)}


@pytest.mark.parametrize("count", [3, BATCH, FILES])
def test_all_files_are_taken_once_in_the_order_of_their_age(queue: Path, count: int) -> None:
    store = Store(queue)
    names = fill(queue, count)
    take(queue, store)
    assert store.accepted == names
    assert left(queue) == set()


@pytest.mark.parametrize("count", [3, FILES])
def test_what_is_wrong_with_some_harms_no_other(queue: Path, count: int) -> None:
    names = fill(queue, count)
    unreadable, unknown, refused, long = names[0], names[1], names[2], names[-1]
    if count > 3:
        (queue / f"{long}.task").write_text(f'command: ["true", "{"x" * 20_000}"]\n')  # read by itself
    (queue / f"{unreadable}.task").unlink()
    (queue / f"{unreadable}.task").symlink_to("/etc/hostname")
    (queue / f"{unknown}.task").write_text("comand: true\n")
    store = Store(queue, refused=frozenset({refused}))
    take(queue, store)
    bad = {unreadable, unknown, refused}
    assert sorted(store.accepted) == [name for name in names if name not in bad]
    assert left(queue) == set()
    assert {name for name in bad if (queue.parent / "rejected" / f"{name}.reason").exists()} == bad


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_store_that_fails_at_a_batch_leaves_it_and_the_next_ones(queue: Path, failing: int) -> None:
    store = Store(queue, failing=frozenset({failing}))
    names = fill(queue, FILES)
    intake = Intake(queue, store.accept, poll_s=1.0)
    intake.take_all()
    done = names[: (failing - 1) * BATCH]
    assert store.accepted == done
    assert left(queue) == set(names) - set(done)
    intake.take_all()
    intake.stop()
    assert store.accepted == names
    assert left(queue) == set()


@pytest.mark.parametrize("count", [3, FILES])
def test_a_version_that_comes_while_the_one_before_is_accepted_is_taken_next(queue: Path, count: int) -> None:
    names = fill(queue, count)
    store = Store(queue)

    def accept(tasks: Sequence[Task]) -> Sequence[Acceptance | PyschedError]:
        verdicts = store.accept(tasks)
        if store.calls == 1:
            (queue / "new").write_text("duration_ms: 9\n")
            (queue / "new").rename(queue / f"{names[0]}.task")
        return verdicts

    intake = Intake(queue, accept, poll_s=1.0)
    intake.take_all()
    intake.stop()
    assert store.accepted == [*names, names[0]]
    assert left(queue) == set()
