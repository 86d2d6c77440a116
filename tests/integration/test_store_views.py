"""What people see of the store."""

from __future__ import annotations

import json

import pytest

from pysched.errors import NotFoundError
from pysched.model import Priority, State
from pysched.selection import EVERYTHING
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, outcome, success, task


def test_everything_shown_is_json(store: Store) -> None:
    accept(store, task("a", params={"x": 1}, command="true"), task("b", delay_s=9.0))
    node = Node(store)
    node.finish(outcome(node.key(), state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1", result='{"a": 1}'))
    node.start(node.key())
    detail, rows = store.get("a"), store.page(EVERYTHING, limit=9).rows
    json.dumps([detail, rows, store.stats(), store.nodes()], allow_nan=False)
    assert detail["result"] == {"a": 1}
    assert [attempt["status"] for attempt in detail["attempts"]] == ["failed", "running"]
    assert detail["attempts"][0].keys() == detail["attempts"][1].keys()
    assert rows[1]["attempts"] == 2
    assert {name: value for name, value in detail.items() if name not in {"attempts", "task"}} == {
        name: value for name, value in rows[1].items() if name != "attempts"
    }


def test_nobody(store: Store) -> None:
    with pytest.raises(NotFoundError, match="there is no task nobody"):
        store.get("nobody")


def test_stats_count_every_state(store: Store) -> None:
    accept(store, *(task(f"t{number}", priority=Priority.HIGH) for number in range(6)))
    accept(store, task("blocked", after=["t0"], priority=Priority.LOW), task("later", delay_s=99.0))
    node = Node(store)
    good, bad, running, again, *_ = [claim.key for claim in node.claim(limit=5)]
    node.start(running)
    node.finish(
        success(good),
        outcome(bad, state=State.FAILED, reason="exit 1"),
        outcome(again, state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1", delay_s=99),
    )
    store.cancel("later")
    stats = store.stats()
    assert stats["states"] == {
        "blocked": 0,
        "scheduled": 1,
        "queued": 3,
        "running": 1,
        "succeeded": 1,
        "failed": 1,
        "cancelled": 1,
    }
    assert stats["priorities"]["queued"] == {"HIGH": 2, "MED": 0, "LOW": 1}
    assert (stats["queued"], stats["running"], stats["submitted"], stats["retried"]) == (3, 1, 8, 1)
    assert stats["paused"] is False
    assert store.depths() == ({Priority.HIGH: 2, Priority.MED: 0, Priority.LOW: 1}, 8)
    assert store.submitted() == 8
