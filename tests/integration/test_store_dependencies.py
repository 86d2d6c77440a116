"""What the end of a task means for those that wait for it, also when several things happen at once."""

from __future__ import annotations

from functools import partial

import psycopg
import pytest

from pysched.model import State
from pysched.store.store import Store
from tests.integration.store_driver import (
    Node,
    accept,
    at_once,
    await_blocked,
    begin,
    ids,
    outcome,
    states,
    success,
    task,
)


def test_a_chain_runs_in_order(store: Store) -> None:
    names = [f"t{number}" for number in range(5)]
    accept(store, *(task(name, after=names[:index][-1:]) for index, name in enumerate(names)))
    node = Node(store)
    for name in names:
        assert ids(node.run()) == [name]


def test_a_task_waits_for_all_it_needs(store: Store) -> None:
    accept(store, task("a"), task("b"), task("c"), task("join", after=["a", "b", "c"]))
    node = Node(store)
    keys = {claim.key.id: claim.key for claim in node.claim()}
    node.finish(success(keys["a"]), success(keys["b"]))
    assert store.get("join")["waiting_for"] == 1
    assert states(store, "join") == ["blocked"]
    node.finish(success(keys["c"]))
    assert states(store, "join") == ["queued"]


def test_a_success_frees_all_that_wait(store: Store) -> None:
    accept(store, task("a"), *(task(f"d{number}", after=["a"]) for number in range(1_000)))
    node = Node(store)
    node.run()
    assert len(node.claim(limit=2_000)) == 1_000


def test_a_retry_keeps_them_waiting(store: Store) -> None:
    accept(store, task("a"), task("b", after=["a"]))
    node = Node(store)
    node.finish(outcome(node.key(), state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1"))
    assert states(store, "a", "b") == ["queued", "blocked"]


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
def test_an_end_without_success_cancels_all_the_way_down(store: Store, end: State) -> None:
    accept(
        store,
        task("a"),
        task("other"),
        task("b", after=["a"]),
        task("c", after=["b", "other"]),
        task("d", after=["c"]),
        task("free", after=["other"]),
    )
    node = Node(store)
    keys = {claim.key.id: claim.key for claim in node.claim()}
    records, _ = node.finish(outcome(keys["a"], state=end, reason="timeout"))
    assert ids(records) == ["a"]
    assert states(store, "b", "c", "d", "free") == ["cancelled", "cancelled", "cancelled", "blocked"]
    assert store.record("d").reason == "dependency"
    assert sorted(ids(store.undelivered(node.home, 10))) == ["a", "b", "c", "d"]
    node.finish(success(keys["other"]))
    assert states(store, "c", "free") == ["cancelled", "queued"]
    assert sum(store.stats()["states"].values()) == 6


def test_one_statement_ends_a_long_chain(store: Store) -> None:
    accept(store, *(task(f"t{number}", after=[f"t{number - 1}"] if number else []) for number in range(5_000)))
    Node(store).run(State.FAILED, "exit 1")
    assert store.stats()["states"]["cancelled"] == 4_999


def test_a_diamond_is_counted_once_an_edge(store: Store) -> None:
    accept(store, task("top"), task("l", after=["top"]), task("r", after=["top"]), task("end", after=["l", "r"]))
    node = Node(store)
    assert ids(node.run()) == ["top"]
    assert sorted(ids(node.run())) == ["l", "r"]
    assert ids(node.run()) == ["end"]


def test_needs_that_succeed_at_the_same_time(store: Store) -> None:
    node = Node(store)
    for round_ in range(20):
        needs = [f"n{round_}-{number}" for number in range(4)]
        dependents = [f"d{round_}-{number}" for number in range(10)]
        accept(store, *(task(name) for name in needs), *(task(name, after=needs) for name in dependents))
        keys = [claim.key for claim in node.claim()]
        at_once(*(partial(node.finish, success(key)) for key in keys))
        assert len(node.run()) == 10


def test_a_need_that_fails_while_another_succeeds(store: Store) -> None:
    node = Node(store)
    for round_ in range(20):
        good, bad = f"g{round_}", f"b{round_}"
        dependents = [f"d{round_}-{number}" for number in range(10)]
        accept(store, task(good), task(bad), *(task(name, after=[good, bad]) for name in dependents))
        keys = {claim.key.id: claim.key for claim in node.claim()}
        at_once(
            partial(node.finish, success(keys[good])),
            partial(node.finish, outcome(keys[bad], state=State.FAILED, reason="exit 1")),
        )
        assert set(states(store, *dependents)) == {"cancelled"}


def test_two_causes_cancel_one_task_once(store: Store) -> None:
    node = Node(store)
    for round_ in range(20):
        needs = [f"n{round_}-{number}" for number in range(3)]
        accept(
            store,
            *(task(name) for name in needs),
            task(f"d{round_}", after=needs),
            task(f"e{round_}", after=[f"d{round_}"]),
        )
        keys = [claim.key for claim in node.claim()]
        at_once(
            *(partial(node.finish, outcome(key, state=State.FAILED, reason="exit 1")) for key in keys),
            partial(store.cancel, f"d{round_}"),
        )
        assert states(store, f"d{round_}", f"e{round_}") == ["cancelled", "cancelled"]
    assert store.stats()["states"]["cancelled"] == 40


def test_accepted_behind_a_task_while_that_is_being_cancelled(store: Store, store_url: str) -> None:
    """The cascade waits for the row that the acceptor has locked; then it must see the edge that is new since."""
    accept(store, task("a"), task("b", after=["a"]))
    node = Node(store)
    key = node.key()
    with psycopg.connect(store_url) as acceptor:
        acceptor.execute("SELECT FROM pysched.tasks WHERE id = 'b' FOR SHARE")
        failing = begin(lambda: node.finish(outcome(key, state=State.FAILED, reason="exit 1")))
        await_blocked(store_url)
        acceptor.execute(
            "INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, waiting_for, submitted_at)"
            " VALUES ('c', 'c', 'system', 1, 0, '{}', 'blocked', 1, now())"
        )
        acceptor.execute("INSERT INTO pysched.dependencies VALUES ('c', 'b')")
        acceptor.commit()
        failing.join()
    assert states(store, "a", "b", "c") == ["failed", "cancelled", "cancelled"]


def test_accepted_behind_a_task_while_that_succeeds(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node = Node(store)
    key = node.key()
    with psycopg.connect(store_url) as acceptor:
        acceptor.execute("SELECT FROM pysched.tasks WHERE id = 'a' FOR SHARE")
        succeeding = begin(lambda: node.finish(success(key)))
        await_blocked(store_url)
        acceptor.execute(
            "INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, waiting_for, submitted_at)"
            " VALUES ('c', 'c', 'system', 1, 0, '{}', 'blocked', 1, now())"
        )
        acceptor.execute("INSERT INTO pysched.dependencies VALUES ('c', 'a')")
        acceptor.commit()
        succeeding.join()
    assert states(store, "a", "c") == ["succeeded", "queued"]
