"""Tasks that waited too long are claimed out of a share of their own."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from pysched.model import Priority, State
from pysched.policy import Overdue
from pysched.store import sql
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, outcome, success, task

LOW = Overdue(priority=Priority.LOW, after_s=1200, limit=1)
MED = Overdue(priority=Priority.MED, after_s=600, limit=1)


def wait(url: str, seconds: float, *ids: str) -> None:
    """Let tasks have waited for so long."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "UPDATE pysched.tasks SET ready_at = clock_timestamp() - make_interval(secs => %s) WHERE id = ANY(%s)",
            (seconds, list(ids)),
        )


def claim(store: Store, node: Node, limit: int, *overdue: Overdue, lowest: Priority = Priority.LOW) -> list[str]:
    claims = store.claim(node.incarnation, lowest=lowest, limit=limit, overdue=overdue)
    return sorted(claim.key.id for claim in claims)


def test_the_longest_wait_of_each_class_comes_before_high(store: Store, store_url: str) -> None:
    accept(store, *(task(f"high{i}", priority="HIGH", rank=9) for i in range(4)))
    accept(store, *(task(f"med{i}", priority="MED", rank=i) for i in range(2)))
    accept(store, *(task(f"low{i}", priority="LOW", rank=i) for i in range(3)))
    node = Node(store)
    wait(store_url, 1199, "low0", "low2")
    wait(store_url, 599, "med1")
    assert claim(store, node, 1, LOW, MED) == ["high0"]
    wait(store_url, 1300, "low1", "med0")
    wait(store_url, 1400, "low0")
    assert claim(store, node, 3, LOW, MED, lowest=Priority.HIGH) == ["high1", "low0", "med0"]
    assert claim(store, node, 1, LOW, MED, lowest=Priority.HIGH) == ["low1"]
    assert claim(store, node, 9, LOW, MED) == ["high2", "high3", "low2", "med1"]
    assert claim(store, node, 9, LOW, MED) == []


def test_a_claim_is_full_when_only_overdue_ones_are_left(store: Store, store_url: str) -> None:
    ids = [f"low{i}" for i in range(10)]
    accept(store, *(task(task_id, priority="LOW") for task_id in ids))
    wait(store_url, 5000, *ids)
    node = Node(store)
    part = Overdue(priority=Priority.LOW, after_s=1200, limit=4)
    claimed = claim(store, node, 8, part)
    assert len(set(claimed)) == len(claimed) == 8
    assert len(claim(store, node, 8, part)) == 2


def test_a_claim_says_how_long_the_task_has_waited_and_shows_its_priority_unchanged(
    store: Store, store_url: str
) -> None:
    accept(store, task("low", priority="LOW"))
    wait(store_url, 1300, "low")
    node = Node(store)
    (found,) = store.claim(node.incarnation, lowest=Priority.HIGH, limit=1, overdue=[LOW])
    assert 1300 <= found.waited_s < 1400
    assert found.priority is Priority.LOW
    assert store.get("low")["priority"] == "LOW"
    store.end_node(node.incarnation)
    assert store.abandoned(1)[0].claim.waited_s >= found.waited_s
    wait(store_url, -100, "low")
    assert store.abandoned(1)[0].claim.waited_s == 0


def test_nothing_is_claimed_for_its_age_while_claims_are_off(store: Store, store_url: str) -> None:
    accept(store, task("low", priority="LOW"))
    wait(store_url, 1300, "low")
    node = Node(store)
    store.set_paused(True)
    assert claim(store, node, 5, LOW) == []
    store.set_paused(False)
    store.drain(node.incarnation)
    assert claim(store, node, 5, LOW) == []
    assert claim(store, Node(store), 5, LOW) == ["low"]


@pytest.mark.parametrize(
    ("end", "waits_on"),
    [
        ({"state": State.FAILED, "next_state": State.SCHEDULED}, False),
        ({"state": State.FAILED, "next_state": State.SCHEDULED, "delay_s": 0.001}, False),
        ({"state": State.CANCELLED, "next_state": State.QUEUED, "counts": False}, True),
    ],
)
def test_a_retry_waits_anew_and_what_was_handed_back_waits_on(
    store: Store, store_url: str, end: dict[str, object], waits_on: bool
) -> None:
    accept(store, task("low", priority="LOW"))
    wait(store_url, 1300, "low")
    node = Node(store)
    node.finish(outcome(node.key(), **end))  # type: ignore[arg-type]
    while store.promote() is not None:
        pass
    (found,) = node.claim()
    assert (found.waited_s >= 1300) == waits_on


def test_waiting_begins_when_what_was_waited_for_has_come(store: Store, store_url: str) -> None:
    accept(store, task("first", priority="HIGH"), task("then", priority="LOW", after=["first"]))
    wait(store_url, 5000, "then")
    node = Node(store)
    node.finish(success(node.key()))
    (found,) = node.claim()
    assert found.waited_s < 1000
    node.finish(outcome(found.key, state=State.FAILED, reason="exit 1"))
    wait(store_url, 5000, "then")
    store.retry("then")
    assert node.claim()[0].waited_s < 1000


@pytest.mark.parametrize(
    ("query", "bound"),
    [("claim", "(ready_at <= (statement_timestamp() - "), ("promote", "(due_at <= statement_timestamp())")],
)
def test_a_search_by_time_reads_only_what_it_finds(store: Store, query: str, bound: str) -> None:
    """A bound that is a mere filter passes over a million waiting tasks for each claim."""
    parameters = {
        "node": str(uuid.uuid4()), "schema": 4, "overdue_priorities": [1, 2], "overdue_after": [600.0, 1200.0],
        "overdue_limits": [1, 1], "lowest": 2, "limit": 10,
        "cpus": 1, "mem": 1, "gpus": 1, "has_cpus": 1, "has_mem": 1, "has_gpus": 1,
    }  # fmt: skip
    with store._database.session() as conn:
        statement = b"EXPLAIN " + getattr(sql.load("claim"), query)
        plan = [line for (line,) in psycopg.ClientCursor(conn).execute(statement, parameters)]
    assert any("Index Cond: " in line and bound in line for line in plan), plan
    assert not any("Sort Key: tasks.ready_at" in line for line in plan)
