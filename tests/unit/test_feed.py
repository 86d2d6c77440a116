"""The feed on a store that a test plays: one reader for all, whoever is slow, and whatever goes away."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from typing import Any

from pysched.api import feed as feeds
from pysched.api.events import _batch
from pysched.api.feed import Batch, Feed, Subscription
from pysched.changes import Position, Reading
from pysched.errors import DatabaseUnreachable
from pysched.model import State

DEADLINE_S = 60.0


class Store:
    """A watcher: what is put into `news` is read once; an exception is raised instead."""

    def __init__(self) -> None:
        self.news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.told = threading.Event()
        self.reads = self.made = self.watched = 0
        self.known: dict[str, tuple[str, int]] = {}
        self.closed = False

    def make(self) -> Store:
        self.made += 1
        return self

    def tell(self, *tasks: tuple[str, str]) -> None:
        self.put(json.dumps([{"id": task_id, "status": status, "attempts": 0} for task_id, status in tasks]))

    def put(self, item: Any) -> None:
        self.news.put(item)
        self.told.set()

    def watch(self) -> int:
        self.watched += 1
        return 1

    def unwatch(self) -> None:
        self.watched = 0

    def read(self, since: Position | None) -> Reading:
        self.reads += 1
        changes = []
        while since is not None and not self.news.empty():
            item = self.news.get()
            if isinstance(item, Exception):
                raise item
            changes.append(item)
        return Reading(Position(self.reads, "5:5:"), changes, complete=True)

    def forget(self) -> None: ...

    def standings(self, ids: list[str]) -> dict[str, tuple[str, int]]:
        return {task_id: self.known[task_id] for task_id in ids if task_id in self.known}

    def listen(self, timeout_s: float) -> None:
        self.told.wait(timeout_s)
        self.told.clear()

    def hush(self) -> None:
        self.told.set()

    def close(self) -> None:
        self.closed = True


async def first(subscription: Subscription) -> Batch:
    (batch, *_) = await subscription.next(DEADLINE_S)
    return batch


def test_a_thousand_listeners_cost_one_reader() -> None:
    store = Store()

    async def run() -> None:
        feed = Feed(store.make)
        subscriptions = await asyncio.gather(*(feed.subscribe() for _ in range(1000)))
        before = store.reads
        store.tell(("a", "queued"))
        batches = await asyncio.gather(*(first(each) for each in subscriptions))
        assert {id(batch) for batch in batches} == {id(batches[0])}  # one object for all
        assert batches[0].tasks[0]["id"] == "a"
        assert (store.made, store.watched) == (1, 1)
        assert store.reads - before < 100
        await feed.close()

    asyncio.run(run())
    assert store.closed


def test_a_slow_listener_loses_its_own_news_alone() -> None:
    subscription = Subscription()
    for number in range(feeds.QUEUE_BATCHES + 1):
        subscription.put(Batch(str(number), [{}]))

    async def run() -> None:
        (only,) = await subscription.next(DEADLINE_S)
        assert (only.missed, only.tasks, only.id) == (True, [], str(feeds.QUEUE_BATCHES))

    asyncio.run(run())


def test_a_store_that_goes_away_is_told_and_heard_again() -> None:
    store = Store()

    async def run() -> None:
        feed = Feed(store.make)
        subscription = await feed.subscribe()
        store.put(DatabaseUnreachable("gone"))
        assert (await first(subscription)).missed
        store.tell(("a", "queued"))
        assert (await first(subscription)).tasks
        await feed.close()

    asyncio.run(run())


def test_a_wait_ends_by_news_by_a_look_and_by_the_end() -> None:
    store = Store()
    store.known = {"told": ("running", 1), "looked": ("succeeded", 1), "never": ("running", 1)}

    async def run() -> None:
        feed = Feed(store.make)
        waits = {task_id: feed.change(task_id, ("running", 1)) for task_id in ("told", "looked", "gone", "never")}
        store.tell(("told", "succeeded"))
        await asyncio.wait_for(asyncio.gather(waits["told"], waits["looked"], waits["gone"]), DEADLINE_S)
        assert not waits["never"].done()
        feed.end()
        await asyncio.wait_for(waits["never"], DEADLINE_S)
        assert feed.change("late", ("running", 1)).done()
        await feed.close()

    asyncio.run(run())


def test_nobody_listens_and_the_watch_ends_and_begins_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(feeds, "IDLE_S", 0)
    store = Store()

    async def run() -> None:
        feed = Feed(store.make)
        feed.unsubscribe(await feed.subscribe())
        for _ in range(6000):
            if store.watched == 0:
                break
            store.hush()
            await asyncio.sleep(0.01)  # its poll interval
        assert store.watched == 0
        subscription = await feed.subscribe()
        store.tell(("a", "queued"))
        assert (await first(subscription)).tasks
        await feed.close()

    asyncio.run(run())


def test_a_batch_is_encoded_once_for_all_who_listen_for_the_same() -> None:
    batch = Batch("1:1:", [{"id": "a", "status": "queued"}, {"id": "b", "status": "failed"}])
    everything, failures = frozenset(State), frozenset({State.FAILED})
    first = _batch(batch, everything)
    assert all(one is other for one, other in zip(first, _batch(batch, everything), strict=True))
    assert b'"a"' in first[0]
    assert b'"a"' not in _batch(batch, failures)[0]


def test_a_listener_is_woken_by_news_by_the_end_and_by_time() -> None:
    async def scenario() -> None:
        subscription = Subscription()
        assert await subscription.next(0.001) == []
        waiting = asyncio.create_task(subscription.next(60))
        await asyncio.sleep(0)
        batches = [Batch("1", []), Batch("2", [])]
        for batch in batches:
            subscription.put(batch)
        assert await waiting == batches
        subscription.put(batches[0])  # while nobody waits
        assert await subscription.next(60) == batches[:1]
        waiting = asyncio.create_task(subscription.next(60))
        await asyncio.sleep(0)
        subscription.end()
        assert await waiting == []
        assert await subscription.next(60) == []

    asyncio.run(scenario())
