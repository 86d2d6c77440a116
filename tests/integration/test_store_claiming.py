"""Claims that go on from where the last one ended, which a claimer makes once whole ones are slow."""

from __future__ import annotations

import random

import psycopg
import pytest

from pysched.model import Claim, Priority, State
from pysched.policy import Overdue
from pysched.store.claiming import _ENTRY_S, _SHARE, Claimer
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, ids, outcome, task


class Slow:
    """A clock by which every look at it takes as long as `step_s` says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.step_s = 1.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


class Resumed:
    """A claimer that has found whole claims slow: the next is a resumed one for a while."""

    def __init__(self, store: Store, *, warm: int = 3) -> None:
        self.node = Node(store)
        self.clock = Slow()
        self._claimer = Claimer(store._database, self.node.incarnation, store.schema, self.clock)
        for _ in range(warm):
            self.claim(1)

    def claim(self, limit: int, *overdue: Overdue, lowest: Priority = Priority.LOW) -> list[Claim]:
        return self._claimer.claim(lowest=lowest, limit=limit, overdue=overdue)

    def paid_s(self, *, passed_over: int) -> float:
        """How long a whole claim is not repeated that passed over so many."""
        return _SHARE * _ENTRY_S * passed_over

    def names(self, limit: int, *overdue: Overdue) -> list[str]:
        return ids(claim.key for claim in self.claim(limit, *overdue))


def test_the_order_is_the_same(store: Store) -> None:
    draw = random.Random(7)
    tasks = [
        task(f"t{number}", priority=draw.choice(["HIGH", "MED", "LOW"]), rank=draw.choice([-1, 0, 5]))
        for number in range(200)
    ]
    accept(store, *tasks)
    expected = [t.id for t in sorted(tasks, key=lambda t: (t.priority, -t.rank))]
    claimer = Resumed(store, warm=0)
    found: list[str] = []
    while batch := claimer.names(7):
        found += batch
    assert found == expected


def test_what_comes_behind_waits_for_the_next_whole_claim(store: Store) -> None:
    accept(store, *(task(f"t{number}") for number in range(9)))
    claimer = Resumed(store)  # has taken t0, t1, t2
    accept(store, task("larger", rank=1), task("higher", priority="HIGH"))
    assert claimer.names(2) == ["higher", "t3"]
    claimer.clock.now_s += 1_000
    assert claimer.names(2) == ["larger", "t4"]


def test_what_is_behind_is_found_when_nothing_else_is_left(store: Store) -> None:
    accept(store, *(task(f"t{number}") for number in range(4)))
    claimer = Resumed(store, warm=0)
    first, *_ = [claimer.claim(1)[0] for _ in range(3)]
    claimer.node.finish(outcome(first.key, state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1"))
    assert claimer.names(1) == ["t3"]
    assert claimer.names(1) == ["t0"]
    assert claimer.names(1) == []


def test_a_class_that_is_not_wanted_is_left(store: Store) -> None:
    accept(store, *(task(f"t{number}") for number in range(4)), task("low", priority="LOW"))
    claimer = Resumed(store)
    assert ids(claim.key for claim in claimer.claim(5, lowest=Priority.MED)) == ["t3"]


def test_what_is_overdue_is_owed(store: Store) -> None:
    accept(store, *(task(f"l{number}", priority="LOW") for number in range(3)))
    accept(store, *(task(f"h{number}", priority="HIGH") for number in range(9)))
    claimer = Resumed(store)
    overdue = Overdue(priority=Priority.LOW, after_s=0.0, limit=1)
    assert claimer.names(2, overdue) == ["h3", "h4"]
    claimer.clock.now_s += 1_000
    assert claimer.names(3, overdue) == ["h5", "l0", "l1"]


def test_one_slow_claim_changes_nothing(store: Store) -> None:
    accept(store, *(task(f"t{number}") for number in range(9)))
    claimer = Resumed(store, warm=2)
    claimer.clock.step_s = 0.0  # fast from now on
    claimer.claim(1)
    accept(store, task("larger", rank=1))
    assert claimer.names(1) == ["larger"]


def test_what_an_old_snapshot_keeps_is_passed_over_once(store: Store, store_url: str) -> None:
    claimer = Resumed(store, warm=0)
    claimer.clock.step_s = 0.0  # no claim ever takes long: what makes them resumed is counted
    with psycopg.connect(store_url) as pin:
        pin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pin.execute("SELECT FROM pysched.nodes")
        accept(store, *(task(f"t{number}") for number in range(300)))
        claimer.claim(200)
        claimer.claim(10)  # a whole one: it has passed over 200
        accept(store, task("larger", rank=1), task("higher", priority="HIGH"))
        assert claimer.names(2) == ["higher", "t210"]
        claimer.clock.now_s += 0.2 * claimer.paid_s(passed_over=200)
        assert claimer.names(1) == ["t211"]
        claimer.clock.now_s += claimer.paid_s(passed_over=200)
        assert claimer.names(2) == ["larger", "t212"]


def test_a_few_that_were_passed_over_change_nothing(store: Store, store_url: str) -> None:
    claimer = Resumed(store, warm=0)
    claimer.clock.step_s = 0.0
    with psycopg.connect(store_url) as pin:
        pin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pin.execute("SELECT FROM pysched.nodes")
        accept(store, *(task(f"t{number}") for number in range(40)))
        claimer.claim(10)
        claimer.claim(10)
        accept(store, task("larger", rank=1))
        assert claimer.names(1) == ["larger"]


@pytest.mark.parametrize("stopped", ["paused", "drained"])
def test_nothing_where_nothing_may_be_claimed(store: Store, stopped: str) -> None:
    accept(store, *(task(f"t{number}") for number in range(9)))
    claimer = Resumed(store)
    if stopped == "paused":
        store.set_paused(True)
    else:
        store.drain(claimer.node.incarnation)
    assert claimer.names(3) == []
