"""Pages of tasks: every filter, every source, and that a look is bounded without losing a task."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from pysched.model import Priority, State, TaskType
from pysched.selection import EVERYTHING, Selection
from pysched.store import listing, sql, views
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, outcome, success, task


def walk(store: Store, selection: Selection, limit: int = 3) -> list[str]:
    """All pages, as a client reads them."""
    seen: list[str] = []
    before: int | None = None
    while True:
        page = store.page(selection, limit=limit, before=before)
        assert len(page.rows) <= limit
        seen += [row["id"] for row in page.rows]
        if page.next is None:
            return seen
        assert before is None or page.next < before
        before = page.next


def test_pages_go_back_in_time_and_never_overlap(store: Store) -> None:
    accept(store, *(task(f"t{number}") for number in range(25)))
    page = store.page(EVERYTHING, limit=10)
    seen = [row["id"] for row in page.rows]
    while page.next is not None:
        accept(store, task(f"new{page.next}"))
        page = store.page(EVERYTHING, limit=10, before=page.next)
        seen += [row["id"] for row in page.rows]
    assert seen == [f"t{number}" for number in reversed(range(25))]


@pytest.fixture
def zoo(store: Store) -> Store:
    """A task in every state, and some that differ otherwise."""
    accept(store, task("good"), task("bad"))
    node = Node(store)
    for key, state in zip((claim.key for claim in node.claim()), (State.SUCCEEDED, State.FAILED), strict=True):
        node.start(key)
        node.finish(outcome(key, state=state))
    accept(
        store,
        task("running", tags=["x", "y"], name="train 1"),
        task("claimed", priority=Priority.HIGH, tags=["x"], name="train 2"),
    )
    running, _ = sorted((claim.key for claim in node.claim()), key=lambda key: key.id, reverse=True)
    node.start(running)
    accept(
        store,
        task("queued", priority=Priority.HIGH, type=TaskType.ML, tags=["y"], env={"API_KEY": "hush"}),
        task("blocked", after=["queued"], command="echo Grüße"),
        task("later", delay_s=99.0),
        task("gone", priority=Priority.LOW),
    )
    store.cancel("gone")
    return store


FILTERS = [
    (Selection(), "gone later blocked queued claimed running bad good"),
    (Selection(states=(State.QUEUED,)), "queued claimed"),
    (Selection(states=(State.RUNNING,)), "running"),
    (Selection(states=(State.QUEUED, State.RUNNING)), "queued claimed running"),
    (Selection(states=(State.FAILED, State.SUCCEEDED, State.SCHEDULED)), "later bad good"),
    (Selection(states=tuple(State)), "gone later blocked queued claimed running bad good"),
    (Selection(priorities=(Priority.HIGH,)), "queued claimed"),
    (Selection(priorities=(Priority.HIGH, Priority.LOW)), "gone queued claimed"),
    (Selection(type=TaskType.ML), "queued"),
    (Selection(tags=("x",)), "claimed running"),
    (Selection(tags=("x", "y")), "running"),
    (Selection(tags=("x", "x")), "claimed running"),
    (Selection(tags=("y", "x", "x")), "running"),
    (Selection(tags=("y", "x", "x"), id="r"), "running"),
    (Selection(tags=("x",), states=(State.QUEUED,)), "claimed"),
    (Selection(tags=("z",)), ""),
    (Selection(id="b"), "blocked bad"),
    (Selection(id="b", states=(State.FAILED,)), "bad"),
    (Selection(id="%"), ""),
    (Selection(name="train "), "claimed running"),
    (Selection(name="%"), ""),
    (Selection(text="GRÜSSE"), ""),
    (Selection(text="grüße"), "blocked"),
    (Selection(text="TRAIN"), "claimed running"),
    (Selection(text="hush"), ""),
    (Selection(text="queue"), "blocked queued"),
    (Selection(node=uuid.UUID(int=0)), ""),
]


@pytest.mark.parametrize("looked", [listing.LOOKED, 2])
def test_filters(zoo: Store, monkeypatch: pytest.MonkeyPatch, looked: int) -> None:
    monkeypatch.setattr(listing, "LOOKED", looked)
    for selection, expected in FILTERS:
        assert walk(zoo, selection) == expected.split(), selection


def test_by_node(zoo: Store) -> None:
    node = zoo.get("good")["node"]
    assert walk(zoo, Selection(node=uuid.UUID(node))) == ["claimed", "running", "bad", "good"]


def test_by_time(store: Store, store_url: str) -> None:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    accept(store, *(task(f"t{hour}") for hour in range(24)))
    with psycopg.connect(store_url, autocommit=True) as conn:
        for hour in range(24):
            moment = start + timedelta(hours=hour)
            conn.execute("UPDATE pysched.tasks SET submitted_at = %s WHERE id = %s", (moment, f"t{hour}"))

    def at(since: float | None, until: float | None) -> list[str]:
        bounds = [None if hours is None else start + timedelta(hours=hours) for hours in (since, until)]
        return walk(store, Selection(submitted_since=bounds[0], submitted_until=bounds[1]))

    assert at(5, 8) == ["t7", "t6", "t5"]
    assert at(22.5, None) == ["t23"]
    assert at(None, 1) == ["t0"]
    assert at(24, None) == []
    assert at(None, 0) == []
    assert at(8, 5) == []
    edge = datetime.max.replace(tzinfo=timezone.utc)
    assert walk(store, Selection(submitted_since=edge)) == []
    assert len(walk(store, Selection(submitted_until=edge))) == 24


def test_a_look_by_time_passes_over_what_came_before_and_after(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LOOKED", 5)
    accept(store, *(task(f"t{day}") for day in range(50)))
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute(
            "UPDATE pysched.tasks SET submitted_at = '2026-01-01Z'::timestamptz + substr(id, 2)::int * interval '1 day'"
        )
    day = datetime(2026, 1, 11, tzinfo=timezone.utc)
    page = store.page(Selection(submitted_since=day, submitted_until=day + timedelta(days=1)), limit=2)
    assert ([row["id"] for row in page.rows], page.next) == (["t10"], None)


def test_a_look_by_id_reads_those_ids_alone(store: Store, store_url: str) -> None:
    accept(store, *(task(f"t{number}") for number in range(500)))
    query = sql.load("list").by_id
    values = {"id": "t7", "id_end": "t7\U0010ffff", "before": 1000, "looked": 100}
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute("ANALYZE pysched.tasks")
        # The planner has to believe that they are many.
        conn.execute("UPDATE pg_class SET reltuples = 5000000 WHERE oid = 'pysched.tasks'::regclass")
        # As a session of the store's does.
        conn.execute("SELECT set_config('plan_cache_mode', 'force_generic_plan', false)")
        conn.execute("SELECT set_config('enable_seqscan', 'off', false)")
        rows = conn.execute(b"EXPLAIN " + query, values, prepare=True).fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert "tasks_pkey" in plan
    assert "tasks_sequence" not in plan


def test_by_end(zoo: Store) -> None:
    ended = ["gone", "bad", "good"]
    now = datetime.now(timezone.utc)
    assert walk(zoo, Selection(finished_since=now - timedelta(hours=1))) == ended
    assert walk(zoo, Selection(finished_until=now + timedelta(hours=1), name="g")) == ["gone", "good"]
    assert walk(zoo, Selection(finished_since=now + timedelta(hours=1))) == []


def test_what_is_deleted_leaves_no_tags(store: Store, store_url: str) -> None:
    accept(store, task("a", tags=["x", "y", "x"]), task("b", params={"tags": [1]}), task("c", command='"tags":["no"]'))
    with psycopg.connect(store_url, autocommit=True) as conn:
        assert conn.execute("SELECT tag FROM pysched.tags ORDER BY tag").fetchall() == [("x",), ("y",)]
        conn.execute("DELETE FROM pysched.tasks")
        assert conn.execute("SELECT count(*) FROM pysched.tags").fetchall() == [(0,)]


# ── counts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("counted", [1, 2, 3, 5])
def test_counts_are_the_same_however_few_are_counted(zoo: Store, monkeypatch: pytest.MonkeyPatch, counted: int) -> None:
    exact = zoo.stats(), zoo.depths()
    monkeypatch.setattr(views, "_COUNTED", counted)
    assert (zoo.stats(), zoo.depths()) == exact
    accept(zoo, *(task(f"more{number}") for number in range(5)))
    monkeypatch.setattr(views, "_COUNTED", 6)
    assert zoo.stats()["priorities"]["queued"] == {"HIGH": 2, "MED": 5, "LOW": 0}
    assert zoo.depths()[0] == {Priority.HIGH: 2, Priority.MED: 5, Priority.LOW: 0}


# ── many at once ──────────────────────────────────────────────────────────────────────────────────


def states(store: Store) -> dict[str, str]:
    return {row["id"]: row["status"] for row in store.page(EVERYTHING, limit=100).rows}


def test_cancel_all(zoo: Store) -> None:
    done = zoo.cancel_many(EVERYTHING, limit=100)
    # `blocked` goes down with `queued`, if its own turn has not come before.
    assert (done.cancelled, done.requested, done.unchanged, done.next) == (3, 2, 3, None)
    assert states(zoo) == {
        "good": "succeeded", "bad": "failed", "gone": "cancelled", "running": "running", "claimed": "queued",
        "queued": "cancelled", "blocked": "cancelled", "later": "cancelled",
    }  # fmt: skip
    assert zoo.stats()["states"]["cancelled"] == 4
    again = zoo.cancel_many(EVERYTHING, limit=100)
    assert (again.cancelled, again.requested, again.unchanged) == (0, 2, 6)


def test_cancel_by_filter_page_by_page(store: Store) -> None:
    accept(store, *(task(f"t{number}", tags=["x"] if number % 2 else []) for number in range(10)))
    done = store.cancel_many(Selection(tags=("x",)), limit=3)
    assert (done.cancelled, done.next is None) == (3, False)
    done = store.cancel_many(Selection(tags=("x",)), limit=3, before=done.next)
    assert (done.cancelled, done.next) == (2, None)
    assert [task_id for task_id, state in states(store).items() if state == "cancelled"] == [
        "t9",
        "t7",
        "t5",
        "t3",
        "t1",
    ]
    assert store.stats()["states"]["queued"] == 5


def test_cancelling_takes_along_what_depends_on_it(store: Store) -> None:
    accept(store, task("a", tags=["x"]), task("b", after=["a"]), task("c", after=["b"]))
    assert store.cancel_many(Selection(tags=("x",)), limit=10).cancelled == 1
    assert set(states(store).values()) == {"cancelled"}
    assert store.stats()["states"]["cancelled"] == 3


def test_retry_many(store: Store) -> None:
    accept(store, task("a"), task("b", after=["a"]), task("c"))
    store.cancel("a")
    node = Node(store)
    node.run()
    done = store.retry_many(EVERYTHING, limit=10)
    assert (done.retried, [task_id for task_id, _ in done.refused]) == (2, ["c"])  # a before b, which needs it
    assert states(store) == {"a": "queued", "b": "blocked", "c": "succeeded"}


# ── reasons ───────────────────────────────────────────────────────────────────────────────────────


def whys(store: Store, ids: Iterable[str]) -> dict[str, str]:
    return {task_id: store.explain(task_id)["why"] for task_id in ids}


def test_reasons(zoo: Store) -> None:
    assert whys(zoo, states(zoo)) == {
        "good": "ended", "bad": "ended", "gone": "ended", "running": "running", "claimed": "claimed",
        "queued": "next", "blocked": "blocked", "later": "delayed",
    }  # fmt: skip
    blocked = zoo.explain("blocked")
    assert (blocked["waiting_for"], blocked["message"]) == (
        [{"id": "queued", "status": "queued"}],
        "waits for queued (queued)",
    )
    json.dumps(blocked)
    zoo.set_paused(True)
    assert whys(zoo, ["queued", "later", "running"]) == {"queued": "paused", "later": "delayed", "running": "running"}


def test_what_comes_first(store: Store) -> None:
    accept(store, task("low", priority=Priority.LOW), task("med"), task("ranked", rank=5), task("late"))
    assert whys(store, ["low"]) == {"low": "no_node"}
    node = Node(store)

    def ahead(task_id: str) -> Any:
        return store.explain(task_id)["ahead"]

    assert [ahead(task_id) for task_id in ("ranked", "med", "late", "low")] == [0, 1, 2, 3]
    assert whys(store, ["ranked", "low"]) == {"ranked": "next", "low": "behind"}
    assert store.renew(node.incarnation, 60, running=4) is not None  # as many as it has workers
    assert whys(store, ["ranked"]) == {"ranked": "behind"}
    assert store.explain("ranked")["message"] == "it is the next one; 4 of 4 workers are busy"
    store.drain(node.incarnation)
    assert whys(store, ["ranked"]) == {"ranked": "no_node"}


def test_a_failed_attempt_backs_off(store: Store) -> None:
    accept(store, task("a"))
    node = Node(store)
    node.finish(outcome(node.key(), state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1", delay_s=99))
    explained = store.explain("a")
    assert explained["why"] == "backoff"
    assert explained["due_at"] in explained["message"]


# ── changes ───────────────────────────────────────────────────────────────────────────────────────


def test_changes_are_written_while_somebody_watches(store: Store) -> None:
    watcher = store.watcher()
    try:
        accept(store, task("before"))
        start = watcher.read(None).position
        assert watcher.watch() <= start.ms + 60_000
        accept(store, task("a"), task("b", after=["a"]))
        node = Node(store)
        keys = {claim.key.id: claim.key for claim in node.claim()}
        node.start(keys["a"])
        node.finish(success(keys["a"]))
        reading = watcher.read(start)
        assert reading.complete
        seen = [(each["id"], each["status"]) for text in reading.changes for each in json.loads(text)]
        assert sorted(seen) == sorted(
            [("a", "queued"), ("b", "blocked"), ("a", "running"), ("a", "succeeded"), ("b", "queued")]
        )
        assert watcher.read(reading.position).changes == []
        assert watcher.standings(["a", "b", "none"]) == {"a": ("succeeded", 1), "b": ("queued", 0)}
        watcher.unwatch()
        accept(store, task("after"))
        assert watcher.read(reading.position).changes == []
    finally:
        watcher.close()


def test_no_change_is_missed_whatever_the_order_of_commits(store: Store, store_url: str) -> None:
    watcher = store.watcher()
    try:
        watcher.watch()
        accept(store, task("slow"), task("fast"))
        position = watcher.read(None).position
        with psycopg.connect(store_url) as conn:
            conn.execute("UPDATE pysched.tasks SET reason = 'x' WHERE id = 'slow'")  # begun first …
            store.cancel("fast")
            first = watcher.read(position)
            conn.commit()  # … and committed last
        second = watcher.read(first.position)
        ids = [[each["id"] for text in reading.changes for each in json.loads(text)] for reading in (first, second)]
        assert ids == [["fast"], ["slow"]]
    finally:
        watcher.close()
