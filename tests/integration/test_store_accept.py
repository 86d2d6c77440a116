"""What the store says to submitted tasks, and what it then holds."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

import psycopg
import pytest

from pysched.errors import ConflictError, TaskError
from pysched.model import Acceptance, Priority, State
from pysched.selection import EVERYTHING
from pysched.store.store import Store
from pysched.task import Task
from tests.integration.store_driver import SOURCE, Node, accept, at_once, await_blocked, ids, outcome, states, task


def test_a_task_is_queued_and_shown_as_submitted(store: Store) -> None:
    (verdict,) = accept(store, task("a", command=["true"], priority=Priority.HIGH, rank=-3, tags=["x"]))
    assert verdict == Acceptance(id="a", state=State.QUEUED, created=True)
    row = store.get("a")
    assert row["name"] == "a"
    assert (row["priority"], row["rank"], row["status"], row["attempts"]) == ("HIGH", -3, "queued", [])
    assert row["task"] == {"command": ["true"], "priority": "HIGH", "rank": -3, "tags": ["x"]}
    assert row["submitted_at"].endswith("Z")


def test_text_survives_as_it_was(store: Store) -> None:
    odd = "quote \" ' \\ tab\\t ünïcødé 🙂 {x,NULL} %s %(a)s"
    accept(store, task("a", name="NULL", command=odd, params={"": [1e300, -0.0, 0.1, None]}, env={"A": ""}))
    (claim,) = Node(store).claim()
    again = Task.from_spec("a", claim.spec)
    assert again.command == odd
    assert again.name == "NULL"
    assert again.params == {"": [1e300, -0.0, 0.1, None]}
    assert (
        again.spec() == task("a", name="NULL", command=odd, params={"": [1e300, -0.0, 0.1, None]}, env={"A": ""}).spec()
    )


def test_a_batch_keeps_its_order_of_arrival(store: Store) -> None:
    names = [f"t{(number * 7919) % 12_000:05}" for number in range(12_000)]  # more than one statement's worth
    verdicts = accept(store, *(task(name) for name in names))
    assert ids(verdicts) == names
    assert all(verdict.created for verdict in verdicts)
    assert ids(claim.key for claim in Node(store).claim(limit=20_000)) == names


def test_nothing_is_accepted_of_nothing(store: Store) -> None:
    assert accept(store) == []
    assert store.submitted() == 0


def test_a_task_without_an_id_is_a_defect_of_the_caller(store: Store) -> None:
    with pytest.raises(ValueError, match="id"):
        accept(store, Task())


def test_the_same_again_is_the_same_task(store: Store) -> None:
    accept(store, task("a", rank=1))
    Node(store).run()
    (again,) = accept(store, task("a", rank=1))
    assert again == Acceptance(id="a", state=State.SUCCEEDED, created=False)
    assert store.submitted() == 1


def test_other_content_under_a_taken_id_is_a_conflict(store: Store) -> None:
    accept(store, task("a", rank=1))
    conflict, fine = accept(store, task("a", rank=2), task("b"))
    assert isinstance(conflict, ConflictError)
    assert conflict.task_id == "a"
    assert fine.created
    assert store.get("a")["rank"] == 1


def test_one_id_twice_in_a_batch_the_first_counts(store: Store) -> None:
    first, same, other = accept(store, task("a", rank=1), task("a", rank=1), task("a", rank=2))
    assert first.created
    assert (same.id, same.created, same.state) == ("a", False, State.QUEUED)
    assert isinstance(other, ConflictError)
    assert store.submitted() == 1


def test_one_id_twice_in_a_batch_when_the_id_is_taken(store: Store) -> None:
    accept(store, task("a", rank=2))
    first, same = accept(store, task("a", rank=1), task("a", rank=2))
    assert isinstance(first, ConflictError)
    assert isinstance(same, ConflictError)  # the batch contradicts itself; its first word counts


def test_all_or_nothing(store: Store) -> None:
    accept(store, task("taken", rank=1))
    fine, conflict = accept(store, task("new"), task("taken", rank=2), atomic=True)
    assert fine.created
    assert isinstance(conflict, ConflictError)
    assert [row["id"] for row in store.page(EVERYTHING, limit=10).rows] == ["taken"]
    assert store.submitted() == 1
    assert all(verdict.created for verdict in accept(store, task("new"), task("new2"), atomic=True))


def test_all_or_nothing_with_dependencies(store: Store) -> None:
    fine, refused = accept(store, task("a"), task("b", after=["nowhere"]), atomic=True)
    assert fine.created
    assert isinstance(refused, TaskError)
    assert store.page(EVERYTHING, limit=10).rows == []
    first, twice = accept(store, task("a"), task("a", rank=5), atomic=True)
    assert first.created
    assert isinstance(twice, ConflictError)
    assert store.page(EVERYTHING, limit=10).rows == []


def test_a_delay_schedules(store: Store) -> None:
    (verdict,) = accept(store, task("a", delay_s=100.0))
    assert verdict.state is State.SCHEDULED
    assert store.get("a")["due_at"] > store.get("a")["submitted_at"]
    assert Node(store).claim() == []


class TestDependencies:
    def test_waits_for_what_has_not_succeeded(self, store: Store) -> None:
        accept(store, task("done"))
        Node(store).run()
        verdicts = accept(store, task("a"), task("b", after=["a", "done"]), task("c", after=["done"]))
        assert [verdict.state for verdict in verdicts] == [State.QUEUED, State.BLOCKED, State.QUEUED]
        assert store.get("b")["waiting_for"] == 1

    def test_may_name_a_later_task_of_the_batch(self, store: Store) -> None:
        verdicts = accept(store, task("b", after=["a", "a"]), task("a"))
        assert [verdict.state for verdict in verdicts] == [State.BLOCKED, State.QUEUED]
        assert store.get("b")["waiting_for"] == 1

    def test_an_unknown_one_is_refused_and_so_is_what_needs_it(self, store: Store) -> None:
        refused, behind, fine = accept(store, task("b", after=["nowhere"]), task("c", after=["b"]), task("a"))
        assert isinstance(refused, TaskError)
        assert "'nowhere' is the id of no task" in str(refused)
        assert isinstance(behind, TaskError)
        assert "'b' was refused" in str(behind)
        assert fine.created
        assert [row["id"] for row in store.page(EVERYTHING, limit=10).rows] == ["a"]

    def test_what_needs_a_conflict_is_refused(self, store: Store) -> None:
        accept(store, task("a"))
        conflict, behind = accept(store, task("a", rank=1), task("b", after=["a"]))
        assert isinstance(conflict, ConflictError)
        assert isinstance(behind, TaskError)

    def test_a_cycle_is_refused_with_its_path(self, store: Store) -> None:
        chain = [task("a", after=["c"]), task("b", after=["a"]), task("c", after=["b"])]
        *cyclic, behind, fine = accept(store, *chain, task("d", after=["b"]), task("e"))
        assert all(isinstance(verdict, TaskError) for verdict in cyclic)
        assert "a → c → b → a" in str(cyclic[0])
        assert isinstance(behind, TaskError)
        assert "waits for the cycle" in str(behind)
        assert fine.created
        assert store.submitted() == 1

    def test_a_very_long_cycle_is_refused_soon(self, store: Store) -> None:
        names = [f"t{number}" for number in range(20_000)]
        verdicts = accept(store, *(task(name, after=[names[index - 1]]) for index, name in enumerate(names)))
        assert all(isinstance(verdict, TaskError) for verdict in verdicts)

    def test_the_same_again_is_no_cycle(self, store: Store) -> None:
        batch = [task("a"), task("b", after=["a"])]
        accept(store, *batch)
        again = accept(store, *batch)
        assert [verdict.created for verdict in again] == [False, False]
        assert store.get("b")["waiting_for"] == 1

    def test_after_a_failed_one_it_is_cancelled_at_once(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        node.run(State.FAILED, "exit 1")
        verdicts = accept(store, task("b", after=["a"]), task("c", after=["b"]), task("d", after=["a"], delay_s=9))
        assert [verdict.state for verdict in verdicts] == [State.CANCELLED] * 3
        record = store.record("c")
        assert (record.status, record.reason, record.attempts, record.node) == ("cancelled", "dependency", 0, None)
        assert set(ids(store.undelivered(node.home, 10))) == {"a", "b", "c", "d"}
        assert store.stats()["states"]["cancelled"] == 3

    def test_a_blocked_task_keeps_its_delay(self, store: Store) -> None:
        node = Node(store)
        accept(store, task("a"), task("b", after=["a"], delay_s=1000.0))
        assert states(store, "b") == ["blocked"]
        node.run()
        assert states(store, "b") == ["scheduled"]
        assert store.promote() == pytest.approx(1000, abs=60)


class TestConcurrency:
    def test_one_id_from_many_at_once_is_created_once(self, store: Store) -> None:
        batch = [task(f"t{number}") for number in range(200)]
        answers = at_once(*[partial(store.accept, batch, source=SOURCE, atomic=False)] * 6)
        for verdicts in zip(*answers, strict=True):
            assert sum(verdict.created for verdict in verdicts if isinstance(verdict, Acceptance)) == 1
        assert store.submitted() == 200

    def test_batches_in_opposite_order_do_not_stay_deadlocked(self, store: Store) -> None:
        batch = [task(f"t{number}") for number in range(500)]
        answers = at_once(
            partial(store.accept, batch, source=SOURCE, atomic=True),
            partial(store.accept, batch[::-1], source=SOURCE, atomic=True),
        )
        assert sum(verdict.created for verdicts in answers for verdict in verdicts) == 500  # type: ignore[union-attr]

    def test_other_content_from_many_at_once_conflicts_with_the_winner(self, store: Store) -> None:
        answers = at_once(*(partial(accept, store, task("a", rank=rank)) for rank in range(6)))
        assert sum(isinstance(verdict, Acceptance) for (verdict,) in answers) == 1
        assert sum(isinstance(verdict, ConflictError) for (verdict,) in answers) == 5

    @pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED])
    def test_a_needed_task_that_ends_at_the_same_time(self, store: Store, end: State) -> None:
        """Whoever comes first: the new task is never left waiting for a task that has ended."""
        node = Node(store)
        for round_ in range(40):
            needed, dependents = f"n{round_}", [f"d{round_}-{number}" for number in range(3)]
            accept(store, task(needed))
            (claim,) = [claim for claim in node.claim() if claim.key.id == needed]
            at_once(
                partial(node.finish, outcome(claim.key, state=end, reason="exit 1")),
                *(partial(accept, store, task(name, after=[needed])) for name in dependents),
            )
            expected = "queued" if end is State.SUCCEEDED else "cancelled"
            assert states(store, *dependents) == [expected] * 3
            node.run()

    def test_a_needed_task_of_the_batch_that_another_batch_brings_and_ends_first(
        self, store: Store, store_url: str
    ) -> None:
        """Our insert waits for the other's; by the time it is decided, `a` may have ended."""
        node = Node(store)
        with psycopg.connect(store_url) as other:
            other.execute(
                "INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, finished_at)"
                " VALUES ('a', 'a', 'system', 1, 0, %s, 'succeeded', now(), now())",
                (task("a").spec(),),
            )

            def commit_once_waited() -> list[Any]:
                await_blocked(store_url)
                other.commit()
                return []

            ours = at_once(
                partial(accept, store, task("a"), task("b", after=["a"])),
                commit_once_waited,
            )
        assert [verdict.state for verdict in ours[0]] == [State.SUCCEEDED, State.QUEUED]
        assert ids(claim.key for claim in node.claim()) == ["b"]


def test_totals_are_kept_by_source(store: Store, store_url: str) -> None:
    for source in (uuid.uuid4(), uuid.uuid4()):
        store.accept([task(str(source)), task(f"{source}-2", priority=Priority.LOW)], source=source, atomic=False)
    assert store.submitted() == 4
    with psycopg.connect(store_url) as conn:
        assert conn.execute("SELECT count(*) FROM pysched.tallies").fetchone() == (4,)
