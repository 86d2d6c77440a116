"""Cancel and retry, in every state and against what happens meanwhile."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import psycopg
import pytest

from pysched.errors import InputError, NotFoundError
from pysched.model import Claim, State
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, at_once, ids, outcome, states, success, task


class TestCancel:
    @pytest.mark.parametrize(
        "fields", [{}, {"delay_s": 100.0}, {"after": ["needed"]}], ids=["queued", "scheduled", "blocked"]
    )
    def test_what_waits_ends_at_once(self, store: Store, fields: dict[str, object]) -> None:
        accept(store, task("needed"), task("a", **fields), task("b", after=["a"]))
        assert store.cancel("a") is State.CANCELLED
        record = store.record("a")
        assert (record.reason, record.attempts, record.started_at) == ("user", 0, None)
        assert store.record("b").reason == "dependency"
        node = Node(store)
        assert ids(claim.key for claim in node.claim()) == ["needed"]
        assert sorted(ids(store.undelivered(node.home, 9))) == ["a", "b"]
        assert store.stats()["states"]["cancelled"] == 2

    def test_what_a_node_holds_is_asked_for(self, store: Store) -> None:
        accept(store, task("a"), task("b"))
        node = Node(store)
        claimed, running = [claim.key for claim in node.claim()]
        node.start(running)
        assert store.cancellations(node.incarnation) == []
        assert store.cancel("a") is State.QUEUED
        assert store.cancel("b") is State.RUNNING
        assert sorted(ids(store.cancellations(node.incarnation))) == ["a", "b"]
        assert store.get("b")["cancel_requested"]
        end: dict[str, Any] = {"state": State.CANCELLED, "reason": "user"}
        node.finish(outcome(claimed, **end, void=True), outcome(running, **end))
        assert store.cancellations(node.incarnation) == []
        assert states(store, "a", "b") == ["cancelled", "cancelled"]

    @pytest.mark.parametrize("next_state", [State.SCHEDULED, State.QUEUED], ids=["retry", "handed back"])
    def test_it_overrules_another_attempt(self, store: Store, next_state: State) -> None:
        accept(store, task("a"), task("b", after=["a"]))
        node = Node(store)
        key = node.key()
        store.cancel("a")
        (record,), _ = node.finish(
            outcome(key, state=State.FAILED, next_state=next_state, reason="exit 1", delay_s=9, exit_code=1)
        )
        assert (record.status, record.reason, record.exit_code) == ("cancelled", "user", 1)
        assert store.get("a")["attempts"][0]["reason"] == "exit 1"
        assert states(store, "b") == ["cancelled"]

    def test_it_does_not_overrule_a_success(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        key = node.key()
        store.cancel("a")
        node.finish(success(key))
        assert states(store, "a") == ["succeeded"]
        assert not store.get("a")["cancel_requested"]

    @pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
    def test_what_has_ended_stays(self, store: Store, end: State) -> None:
        accept(store, task("a"))
        Node(store).run(end, "exit 1")
        before = store.record("a")
        assert store.cancel("a") is end
        assert store.record("a") == before

    def test_nobody(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match="nobody"):
            store.cancel("nobody")

    def test_against_a_claim(self, store: Store) -> None:
        node = Node(store)
        for number in range(30):
            name = f"t{number}"
            accept(store, task(name))
            claims, state = cast("tuple[list[Claim], State]", at_once(node.claim, partial(store.cancel, name)))
            if claims:
                assert state is State.QUEUED
                assert ids(store.cancellations(node.incarnation)) == [name]
                node.finish(outcome(claims[0].key, state=State.CANCELLED, reason="user", void=True))
            else:
                assert state is State.CANCELLED
        assert store.stats()["states"]["cancelled"] == 30


class TestRetry:
    def test_a_failed_task_begins_anew(self, store: Store, store_url: str) -> None:
        accept(store, task("a"))
        node = Node(store)
        node.run(State.FAILED, "exit 1")
        assert store.retry("a") is State.QUEUED
        row = store.get("a")
        assert (row["status"], row["failures"], row["finished_at"], row["reason"]) == ("queued", 0, None, None)
        with psycopg.connect(store_url) as conn:
            assert conn.execute("SELECT count(*) FROM pysched.owed").fetchone() == (0,)
        assert store.stats()["states"]["failed"] == 0
        (claim,) = node.claim()
        assert (claim.key.attempt, claim.failures) == (2, 0)
        (record,), _ = node.finish(success(claim.key))
        assert record.attempts == 2
        assert ids(store.undelivered(node.home, 9)) == ["a"]
        assert store.stats()["states"]["succeeded"] == 1
        assert store.submitted() == 1

    def test_a_cancelled_one_waits_again_for_its_time(self, store: Store) -> None:
        accept(store, task("a", delay_s=1_000.0))
        store.cancel("a")
        assert store.retry("a") is State.SCHEDULED
        assert store.promote() == pytest.approx(1_000, abs=60)

    def test_and_for_what_it_needs(self, store: Store) -> None:
        accept(store, task("a"), task("done"), task("b", after=["a", "done"]))
        node = Node(store)
        keys = {claim.key.id: claim.key for claim in node.claim()}
        node.finish(outcome(keys["a"], state=State.FAILED, reason="exit 1"), success(keys["done"]))
        with pytest.raises(InputError, match="task b needs a, which is failed; run that again first"):
            store.retry("b")
        assert store.retry("a") is State.QUEUED
        assert states(store, "b") == ["cancelled"]
        assert store.retry("b") is State.BLOCKED
        assert ids(node.run()) == ["a"]
        assert ids(node.run()) == ["b"]

    @pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
    def test_no_other_state_can_be_retried(self, store: Store, state: str) -> None:
        accept(store, task("a"))
        node = Node(store)
        if state == "running":
            node.start(node.key())
        elif state == "succeeded":
            node.run()
        with pytest.raises(InputError, match=f"task a is {state}; only a failed or cancelled one can be run again"):
            store.retry("a")

    def test_nobody(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match="nobody"):
            store.retry("nobody")

    def test_many_at_once_are_one(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        node.run(State.FAILED, "exit 1")

        def again() -> bool:
            try:
                store.retry("a")
            except InputError:
                return False
            return True

        assert sum(at_once(*[again] * 5)) == 1
        assert store.stats()["states"] == {**store.stats()["states"], "failed": 0, "queued": 1}

    def test_against_the_end_of_what_it_needs(self, store: Store) -> None:
        node = Node(store)
        for number in range(20):
            needed, name = f"n{number}", f"t{number}"
            accept(store, task(needed), task(name, after=[needed]))
            store.cancel(name)
            key = node.key()
            at_once(partial(node.finish, success(key)), partial(store.retry, name))
            assert ids(node.run()) == [name]
