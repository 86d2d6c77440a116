"""Claims of tasks that ask for processors, memory or GPUs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from pysched.model import Priority, State
from pysched.policy import Overdue
from pysched.resources import Demand, Room
from pysched.store.claiming import Claimer
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, at_once, outcome, task

GIB = 2**30
HAS = Demand(cpus=4000, memory=8 * GIB)


class Sized:
    """A node that has something to give, and keeps account of it as the core would."""

    def __init__(self, store: Store, has: Demand = HAS, **room: Any) -> None:
        self.node = Node(store)
        self.free, self._has, self._room = has, has, room
        self.claimer: Claimer = store.claimer(self.node.incarnation, self._look)

    def _look(self) -> Room:
        return Room(capacity=self._has, free=self.free, **self._room)

    def claim(self, limit: int = 100, *, lowest: Priority = Priority.LOW, overdue: Sequence[Overdue] = ()) -> list[str]:
        claims = self.claimer.claim(lowest=lowest, limit=limit, overdue=overdue)
        return [claim.key.id for claim in claims]


def test_what_fits_together_is_claimed_in_order_among_those_that_ask_for_nothing(store: Store) -> None:
    accept(store, *(task(f"large{i}", cpus=3) for i in range(2)), task("plain"), task("small", cpus=1, mem="1GiB"))
    accept(store, task("first", priority="HIGH", cpus=0.5))
    node = Sized(store)
    assert node.claim() == ["first", "large0", "plain"]
    assert node.claimer.short
    node.free = Demand(500, GIB)
    assert node.claim() == []
    node.free = Demand(1000, GIB)
    assert node.claim() == ["small"]
    node.free = Demand(3000, GIB)
    assert node.claim() == ["large1"]
    assert not node.claimer.short


def test_the_limit_is_one_of_all(store: Store) -> None:
    accept(store, *(task(f"{i}", cpus=1 if i % 2 else 0) for i in range(6)))
    node = Sized(store)
    assert node.claim(3) == ["0", "1", "2"]
    assert node.claim(3) == ["3", "4", "5"]
    assert node.claim(3) == []


def test_a_claim_takes_no_lower_priority_than_asked_for(store: Store) -> None:
    accept(store, task("low", priority="LOW", cpus=1), task("med", cpus=1), task("plain", priority="LOW"))
    node = Sized(store)
    assert node.claim(lowest=Priority.HIGH) == []
    assert node.claim(lowest=Priority.MED) == ["med"]
    assert node.claim() == ["low", "plain"]


def test_what_is_too_large_for_this_node_is_left_to_others_and_holds_nobody_up(store: Store) -> None:
    accept(store, *(task(f"gpu{i}", gpus=1, priority="HIGH") for i in range(3)), task("plain"), task("small", cpus=1))
    node = Sized(store)
    assert node.claim() == ["plain", "small"]
    assert node.claim() == []
    assert not node.claimer.short
    accept(store, task("later"))
    assert node.claim() == ["later"]
    assert Sized(store, Demand(gpus=2000)).claim() == ["gpu0", "gpu1"]


@pytest.mark.parametrize(
    ("waits", "free", "short"),
    [({"gpus": 1}, HAS, False), ({"cpus": 4}, Demand(cpus=3000, memory=8 * GIB), True)],
    ids=["never fits", "does not fit now"],
)
def test_what_cannot_be_taken_costs_the_others_no_statement(
    store: Store, monkeypatch: pytest.MonkeyPatch, waits: dict[str, Any], free: Demand, short: bool
) -> None:
    accept(store, task("waits", priority="HIGH", **waits))
    node = Sized(store)
    node.free = free
    assert node.claim() == []
    asked: list[bytes] = []
    execute = store._database.execute

    def counted(query: bytes, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        asked.append(query)
        return execute(query, parameters)

    accept(store, task("plain"))
    monkeypatch.setattr(store._database, "execute", counted)
    assert node.claim() == ["plain"]
    assert len(asked) == 1
    assert bool(node.claimer.short) is short  # it will be looked for again once more is free
    node.free = HAS
    accept(store, task("other"))
    assert node.claim() == (["waits", "other"] if short else ["other"])


def test_the_first_is_claimed_to_wait_where_room_can_be_kept_for_it(store: Store) -> None:
    accept(store, task("large", cpus=4), task("small", cpus=1), task("large2", cpus=4))
    node = Sized(store, reserve_after_s=0.0)
    node.free = Demand(2000)
    assert node.claim() == ["large"]
    assert Sized(store, Demand(1000)).claim() == ["small"]


def test_a_claim_that_takes_some_ahead_says_that_it_has_left_others(store: Store) -> None:
    accept(store, *(task(f"{i}", cpus=1) for i in range(6)))
    node = Sized(store, ahead=3)
    node.free = Demand(0, GIB)
    assert node.claim() == ["0", "1", "2"]
    assert node.claimer.short
    assert node.claim() == ["3", "4", "5"]
    assert not node.claimer.short


def test_what_is_overdue_comes_first_whether_it_asks_for_something_or_not(store: Store, store_url: str) -> None:
    accept(store, *(task(f"high{i}", priority="HIGH", cpus=1) for i in range(9)))
    accept(
        store, task("low", priority="LOW", cpus=1), task("lower", priority="LOW"), task("large", priority="LOW", gpus=1)
    )
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute(
            "UPDATE pysched.tasks SET ready_at = now() - interval '2 hours' * (1 + (id = 'lower')::int)"
            " WHERE priority = 2"
        )
    overdue = [Overdue(priority=Priority.LOW, after_s=3600, limit=1)]
    node = Sized(store)
    assert sorted(node.claim(3, lowest=Priority.HIGH, overdue=overdue)) == ["high0", "high1", "lower"]
    assert sorted(node.claim(3, lowest=Priority.HIGH, overdue=overdue)) == ["high2", "high3", "low"]


def test_nothing_is_claimed_twice_and_all_is_by_nodes_that_claim_at_once(store: Store) -> None:
    ids = [f"{i:03}" for i in range(120)]
    accept(store, *(task(task_id, cpus=1 if i % 3 else 0) for i, task_id in enumerate(ids)))
    nodes = [Sized(store, Demand(100_000)) for _ in range(3)]

    def drain(node: Sized) -> list[str]:
        found: list[str] = []
        while claimed := node.claim(7):
            found += claimed
        return found

    found = at_once(*(lambda node=node: drain(node) for node in nodes))
    # A claim whose choices others took all at once may come back empty; what it left is there for the next.
    found.append(drain(nodes[0]))
    assert sorted(task_id for part in found for task_id in part) == ids


def test_paused_draining_and_ended_nodes_get_nothing(store: Store, store_url: str) -> None:
    accept(store, task("a", cpus=1), task("b"))
    node = Sized(store)
    store.set_paused(True)
    assert node.claim() == []
    store.set_paused(False)
    drained = Sized(store)
    store.drain(drained.node.incarnation)
    assert drained.claim() == []
    expired = Sized(store)
    expired.node.expire(store_url)
    assert expired.claim() == []
    assert node.claim() == ["a", "b"]


@pytest.mark.parametrize("many", [False, True])
def test_what_a_task_asks_for_stays_with_it_through_a_retry_and_in_all_counts(store: Store, many: bool) -> None:
    """`many`: enough to be copied in."""
    count = 1_000 if many else 3
    accept(store, *(task(f"{i}", mem="1GiB", retry_delay_s=0) for i in range(count)))
    assert store.depths()[Priority.MED] == count
    assert store.stats()["queued"] == count
    node = Sized(store)
    (claim,) = node.claimer.claim(lowest=Priority.LOW, limit=1, overdue=())
    node.node.start(claim.key)
    (shown,) = store.nodes()
    assert (shown["mem_held"], shown["cpus_held"]) == (GIB, 0)
    node.node.finish(outcome(claim.key, state=State.FAILED, next_state=State.SCHEDULED, reason="memory"))
    node.free = Demand(memory=GIB)
    assert len(node.claim()) == 1
    assert store.depths()[Priority.MED] == count


def test_explained_by_what_the_nodes_have_and_hold(store: Store) -> None:
    small = Node(store, cpus=0)
    accept(store, task("a", cpus=3), task("plain"))
    assert store.explain("a")["why"] == "too_large"
    assert store.explain("a")["asks_for"] == "3 cpus"
    assert store.explain("plain")["asks_for"] is None
    store.register(replace(small.info, incarnation=uuid.uuid4(), cpus=4000, mem=GIB), 3600.0)
    assert store.explain("a")["why"] == "next"
    large = replace(small.info, incarnation=uuid.uuid4(), cpus=4000)
    store.register(large, 3600.0)
    accept(store, task("b", cpus=2, rank=1), task("c", cpus=2, rank=1))
    for incarnation in [node["incarnation"] for node in store.nodes() if node["cpus"]]:
        (claim,) = store.claimer(uuid.UUID(incarnation), lambda: Room(capacity=HAS, free=Demand(2000))).claim(
            lowest=Priority.LOW, limit=1
        )
        assert claim.key.id in {"b", "c"}
    why = store.explain("a")
    assert why["why"] == "resources"
    assert why["message"].startswith("it asks for 3 cpus, and free are, node by node: 2 cpus")
