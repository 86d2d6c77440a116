"""Tasks that ended long ago go, with all that belongs to them, and nothing else does."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from pysched.errors import InputError, NotFoundError
from pysched.model import State
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, at_once, ids, states, success, task

DAY_S = 86_400.0


def age(url: str, *names: str, days: int = 10) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "UPDATE pysched.tasks SET submitted_at = submitted_at - make_interval(days => %s),"
            " finished_at = finished_at - make_interval(days => %s) WHERE id = ANY(%s)",
            (days, days, list(names)),
        )


def count(url: str, table: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(f"SELECT count(*) FROM pysched.{table}").fetchone()
    assert row is not None
    return int(row[0])


def prune(store: Store, home: uuid.UUID, *, after: int = 0, limit: int = 100) -> list[str]:
    return store.prune(home=home, retention_s=7 * DAY_S, after=after, limit=limit).logs


def test_what_is_old_goes_and_its_id_is_free(store: Store, store_url: str) -> None:
    accept(store, task("old"), task("new"), task("waits", delay_s=1e6))
    node = Node(store)
    keys = [claim.key for claim in node.claim()]
    records, _ = node.finish(
        *(success(key, stdout=f"/logs/{key.id}.out", stderr=f"/logs/{key.id}.err") for key in keys)
    )
    store.delivered(records)
    age(store_url, "old", "waits")
    assert prune(store, node.home) == ["/logs/old.out", "/logs/old.err"]
    with pytest.raises(NotFoundError):
        store.get("old")
    assert states(store, "new", "waits") == ["succeeded", "scheduled"]
    assert count(store_url, "attempts") == 1
    (verdict,) = accept(store, task("old", command="another"))
    assert verdict.created


def test_what_owes_a_done_file_stays(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node = Node(store)
    records = node.run()
    age(store_url, "a")
    prune(store, node.home)
    assert states(store, "a") == ["succeeded"]
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute("DELETE FROM pysched.deliveries")
    prune(store, node.home)
    assert ids(records) == ["a"]
    assert count(store_url, "tasks") == 0


def test_a_living_node_removes_its_own(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node, other = Node(store), Node(store)
    store.delivered(node.run())
    age(store_url, "a")
    prune(store, other.home)
    assert count(store_url, "tasks") == 1
    store.end_node(node.incarnation)
    prune(store, other.home)
    assert count(store_url, "tasks") == 0


def test_batches_are_bounded_and_a_pass_ends_at_what_is_young(store: Store, store_url: str) -> None:
    names = [f"t{number}" for number in range(25)]
    accept(store, *map(task, names))
    node = Node(store)
    store.delivered(node.run())
    age(store_url, *names[:15])
    found, after = [], 0
    while True:
        pruned = store.prune(home=node.home, retention_s=7 * DAY_S, after=after, limit=10)
        found.append(pruned.tasks)
        if pruned.next is None:
            break
        after = pruned.next
    assert found == [10, 5]
    assert count(store_url, "tasks") == 10


def test_edges_go_with_a_success(store: Store, store_url: str) -> None:
    accept(store, task("need"), task("other"), task("join", after=["need", "other"]))
    node = Node(store)
    keys = {claim.key.id: claim.key for claim in node.claim()}
    store.delivered(node.finish(success(keys["need"]))[0])
    age(store_url, "need")
    prune(store, node.home)
    assert count(store_url, "dependencies") == 1
    node.finish(success(keys["other"]))
    assert states(store, "join") == ["queued"]


def test_what_needed_a_failure_that_is_gone_cannot_be_retried(store: Store, store_url: str) -> None:
    accept(store, task("need"), task("then", after=["need"]))
    node = Node(store)
    store.delivered(node.run(State.FAILED, "exit 1"))
    age(store_url, "need")
    prune(store, node.home)
    with pytest.raises(InputError, match="needs need, which did not succeed and has been removed"):
        store.retry("then")


def test_what_an_accept_is_looking_at_stays(store: Store, store_url: str) -> None:
    accept(store, task("need"))
    node = Node(store)
    store.delivered(node.run())
    age(store_url, "need")
    with psycopg.connect(store_url) as conn:
        conn.execute("SELECT FROM pysched.tasks WHERE id = 'need' FOR SHARE")
        prune(store, node.home)  # does not wait
        assert count(store_url, "tasks") == 1
    prune(store, node.home)
    assert count(store_url, "tasks") == 0


def test_a_retry_at_the_same_time_keeps_all_or_finds_nothing(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node = Node(store)
    store.delivered(node.run(State.FAILED, "exit 1"))
    age(store_url, "a")

    def retry() -> bool:
        try:
            return store.retry("a") is State.QUEUED
        except NotFoundError:
            return False

    retried, _ = at_once(retry, lambda: bool(prune(store, node.home)))
    assert count(store_url, "tasks") == count(store_url, "attempts") == int(retried)


def test_nodes_that_ended_long_ago_are_forgotten(store: Store, store_url: str) -> None:
    gone, lives = Node(store), Node(store)
    store.end_node(gone.incarnation)
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute("UPDATE pysched.nodes SET ended_at = ended_at - interval '20 days' WHERE ended_at IS NOT NULL")
    prune(store, lives.home)
    assert count(store_url, "nodes") == 1
