"""Large batches, which are copied in: the same as small ones, down to each column."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pysched.errors import ConflictError, Problem, TaskError
from pysched.model import Acceptance, Priority, TaskType
from pysched.store import loading
from pysched.store.store import Store
from pysched.task import Task
from tests.integration.store_driver import Node, accept, at_once, task

COLUMNS = "state, rank, spec, type, priority, waiting_for, reason, attempts, failures, finished_at, standing, place"


def many(count: int = 40, prefix: str = "t") -> list[Task]:
    return [
        task(
            f"{prefix}{number}",
            priority=Priority(number % 3),
            type=TaskType.ML if number % 5 == 0 else TaskType.SYSTEM,
            rank=number % 4,
            delay_s=99.0 if number % 7 == 0 else 0.0,
            command='tab\t back\\slash new\nline \\N ü {"}',
            tags=["x"] if number % 2 else [],
        )
        for number in range(count)
    ]


def rows(url: str, prefix: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return conn.execute(
            f"SELECT replace(id, %(prefix)s, ''), replace(name, id, ''), {COLUMNS},"
            " extract(epoch FROM due_at - submitted_at)::int, extract(epoch FROM not_before - submitted_at)::int,"
            " submitted_at > now() - interval '1 hour', ready_at > now() - interval '1 hour'"
            " FROM pysched.tasks WHERE starts_with(id, %(prefix)s) ORDER BY sequence",
            {"prefix": prefix},
        ).fetchall()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LEAST", 20)


def test_both_ways_write_the_same(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(store, *many(prefix="copied"))
    monkeypatch.setattr(loading, "LEAST", 10**9)
    accept(store, *many(prefix="inserted"))
    assert rows(store_url, "copied") == rows(store_url, "inserted")
    assert len(rows(store_url, "copied")) == 40
    stats = store.stats()
    assert (stats["submitted"], stats["states"]["scheduled"], stats["states"]["queued"]) == (80, 12, 68)


def test_order_of_arrival_is_the_order_of_claims(store: Store) -> None:
    accept(store, *(task(f"t{number}") for number in range(30)))
    assert [claim.key.id for claim in Node(store).claim()] == [f"t{number}" for number in range(30)]


@pytest.mark.parametrize("atomic", [True, False])
def test_what_is_there_already(store: Store, atomic: bool) -> None:
    accept(store, task("t3"), task("t1", priority=Priority.MED, rank=9))
    batch = [task(f"t{number}") for number in range(30)]
    verdicts = accept(store, *batch, atomic=atomic)
    assert isinstance(verdicts[1], ConflictError)
    assert verdicts[3] == Acceptance(id="t3", state=verdicts[3].state, created=False)
    assert sum(isinstance(verdict, Acceptance) and verdict.created for verdict in verdicts) == 28
    assert store.submitted() == (2 if atomic else 30)
    again = accept(store, *batch, atomic=False)
    assert sum(isinstance(verdict, Acceptance) and verdict.created for verdict in again) == (28 if atomic else 0)


def test_two_at_once_with_the_same_ids(store: Store) -> None:
    batch = many()
    verdicts = at_once(lambda: accept(store, *batch), lambda: accept(store, *reversed(batch)))
    created = [sum(verdict.created for verdict in each) for each in verdicts]
    assert sum(created) == 40
    assert store.submitted() == 40


class TestStream:
    def test_it_writes_what_accept_writes(self, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loading, "_PIECE", 7)
        loaded = store.accept_stream(lambda: many(prefix="streamed"), source=uuid.uuid4())
        assert loaded is not None
        assert [task_id for task_id, _ in loaded] == [f"streamed{number}" for number in range(40)]
        monkeypatch.setattr(loading, "LEAST", 10**9)
        verdicts = accept(store, *many(prefix="inserted"))
        assert [state for _, state in loaded] == [verdict.state for verdict in verdicts]
        assert rows(store_url, "streamed") == rows(store_url, "inserted")
        assert store.submitted() == 80

    def test_nodes_hear_of_it(self, store: Store, store_url: str) -> None:
        with psycopg.connect(store_url, autocommit=True) as ear:
            ear.execute("LISTEN pysched")
            store.accept_stream(lambda: [task("now")], source=uuid.uuid4())
            assert "ready" in {notice.payload for notice in ear.notifies(timeout=60, stop_after=2)}

    @pytest.mark.parametrize(
        "batch",
        [
            [task("a"), task("there")],
            [task("a"), task("b"), task("a")],
            [task("a"), task("b", after=["there"])],
        ],
    )
    def test_what_accept_must_judge_is_left_to_it(self, store: Store, batch: list[Task]) -> None:
        accept(store, task("there"))
        assert store.accept_stream(lambda: batch, source=uuid.uuid4()) is None
        assert store.submitted() == 1

    def test_what_reading_raises_undoes_it(self, store: Store) -> None:
        def broken() -> Iterator[Task]:
            yield from many()
            raise TaskError(Problem("rank", "is wrong"), index=40)

        with pytest.raises(TaskError):
            store.accept_stream(broken, source=uuid.uuid4())
        assert store.submitted() == 0
        assert store.accept_stream(many, source=uuid.uuid4()) is not None  # the connection is as good as new
