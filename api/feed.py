"""What becomes of tasks, heard once for everybody.

::

    store ── changes ──► thread ── batches ──► event loop ─┬─► subscriptions (GET /events)
                           ▲                               └─► waits (GET /tasks/{id}?wait=, logs that are followed)
                           └── nothing to do, the store's watch ends: nobody has listened for a while

However many listen, there is one thread with one connection, and one query a batch.  A notification makes the next
reading early; a second's poll is the truth, and looks at the tasks that are waited for whatever was heard.
The thread owns the watch and the position; everything else belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from pysched.changes import Position, Reading
from pysched.errors import StoreError

POLL_S = 1.0
GAP_S = 0.02  # from one reading to the next at least: what comes within it is one batch …
GAP_A_LISTENER_S = 0.0005  # … and longer with many listeners, each of whom costs some time a batch
RENEW_S = 10.0
IDLE_S = 30.0  # without listeners, until the watch ends: one that comes back in this time has missed nothing
SETTLE_S = 5.0  # for transactions that were under way when the watch began
QUEUE_BATCHES = 64  # of one slow listener

_log = structlog.get_logger("feed")

Standing = tuple[str, int]  # state, attempts


class Watcher(Protocol):
    """See `pysched.store.changes.Watcher`."""

    def watch(self) -> int: ...
    def unwatch(self) -> None: ...
    def read(self, since: Position | None, /) -> Reading: ...
    def forget(self) -> None: ...
    def standings(self, ids: list[str], /) -> dict[str, Standing]: ...
    def listen(self, timeout_s: float, /) -> None: ...
    def hush(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """What was committed between two readings."""

    id: str  # the later reading
    tasks: list[dict[str, Any]]  # id, status, reason, attempts, exit_code
    missed: bool = False  # not everything could be told
    texts: dict[object, list[bytes]] = field(default_factory=dict, compare=False)  # as sent, made once


class Subscription:
    """A listener's own queue.  It belongs to the event loop."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False

    async def next(self, timeout_s: float) -> list[Batch]:
        """What has come, waiting at most so long for the first."""
        if not self._batches and not self.ended:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)  # wait_for would make a task, for each batch and listener
            try:
                await self._waiter
            finally:
                self._waiter = None
                timer.cancel()
        batches = [*self._batches]
        self._batches.clear()
        return batches

    def put(self, batch: Batch) -> None:
        if len(self._batches) >= QUEUE_BATCHES:
            self._batches.clear()
            batch = Batch(batch.id, [], missed=True)
        self._batches.append(batch)
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Feed:
    """Hears for as long as somebody listens."""

    def __init__(self, watcher: Callable[[], Watcher]) -> None:
        self._make = watcher
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._watcher: Watcher | None = None
        self._stop = threading.Event()
        self._wanted = threading.Event()
        self._used = 0.0  # monotonic: when somebody last listened
        self._since_ms = 0  # changes are complete from here on; 0: not watching
        self._live = asyncio.Event()
        self._subscriptions: set[Subscription] = set()
        self._waits: dict[str, set[tuple[Standing, asyncio.Future[None]]]] = {}
        self.ended = False

    # ── for routes, on the event loop ─────────────────────────────────────────────────────────────

    @property
    def listeners(self) -> int:
        return len(self._subscriptions)

    async def subscribe(self) -> Subscription:
        """From here on it gets every batch; once the feed has ended it has ended, too."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            await self._hearing()
        except BaseException:
            self.unsubscribe(subscription)
            raise
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)
        self._used = time.monotonic()

    async def since(self, position: Position) -> Batch:
        """What a listener has missed that comes back with its last position."""
        if self._watcher is None or position.ms < self._since_ms:
            return Batch("", [], missed=True)
        reading = await asyncio.to_thread(self._watcher.read, position)
        if reading.position.xmax < position.xmax:  # of another database
            return Batch("", [], missed=True)
        return Batch(str(reading.position), _tasks(reading.changes), missed=not reading.complete)

    def change(self, task_id: str, seen: Standing) -> asyncio.Future[None]:
        """Done once the task stands otherwise than `seen`, or the feed has ended.  Cancel it if you wait no more."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.ended:
            future.set_result(None)
            return future
        wait = (seen, future)
        self._waits.setdefault(task_id, set()).add(wait)
        future.add_done_callback(lambda _: self._forget(task_id, wait))
        self._start()
        return future

    def standing(self, task_id: str) -> Standing | None:
        """As the store has it now; blocks.  None if there is no such task."""
        if self._watcher is None:
            self._watcher = self._make()
        return self._watcher.standings([task_id]).get(task_id)

    def end(self) -> None:
        """Let nobody wait any more; for a server that stops."""
        self.ended = True
        for subscription in self._subscriptions:
            subscription.end()
        for waits in [*self._waits.values()]:
            for _, future in [*waits]:
                if not future.done():
                    future.set_result(None)
        self._live.set()

    async def close(self) -> None:
        """End, and wait for the thread."""
        self.end()
        self._stop.set()
        self._wanted.set()
        if self._watcher is not None:
            self._watcher.hush()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._watcher is not None:
            self._watcher.close()

    async def _hearing(self) -> None:
        self._start()
        await self._live.wait()

    def _start(self) -> None:
        self._used = time.monotonic()
        self._wanted.set()
        if self._thread is None and not self.ended:
            self._loop = asyncio.get_running_loop()
            if self._watcher is None:
                self._watcher = self._make()
            self._thread = threading.Thread(target=self._run, args=(self._watcher,), name="feed", daemon=True)
            self._thread.start()

    def _forget(self, task_id: str, wait: tuple[Standing, asyncio.Future[None]]) -> None:
        self._used = time.monotonic()
        waits = self._waits.get(task_id, set())
        waits.discard(wait)
        if not waits:
            self._waits.pop(task_id, None)

    def _deliver(self, batch: Batch) -> None:
        for task in batch.tasks:
            self._resolve(task["id"], (task["status"], task["attempts"]))
        if batch.tasks or batch.missed:
            for subscription in self._subscriptions:
                subscription.put(batch)

    def _compare(self, ids: Iterable[str], standings: dict[str, Standing]) -> None:
        for task_id in ids:
            self._resolve(task_id, standings.get(task_id))

    def _resolve(self, task_id: str, standing: Standing | None) -> None:
        for seen, future in [*self._waits.get(task_id, ())]:
            if standing != seen and not future.done():
                future.set_result(None)

    # ── the thread ────────────────────────────────────────────────────────────────────────────────

    def _run(self, watcher: Watcher) -> None:
        while not self._stop.is_set():
            self._wanted.wait()
            try:
                self._hear(watcher)
            except StoreError as error:
                _log.debug("changes are not heard, the store does not answer", error=str(error))
                self._since_ms = 0
                self._on_loop(self._deliver, Batch("", [], missed=True))
                self._stop.wait(POLL_S)

    def _hear(self, watcher: Watcher) -> None:
        """Until nobody listens any more, or `close`."""
        position, since_ms = self._begin(watcher)
        self._since_ms = since_ms
        self._on_loop(self._live.set)
        renew_at = time.monotonic() + RENEW_S
        look_at = 0.0
        while not self._stop.is_set():
            read_at = time.monotonic()
            reading = watcher.read(position)
            position = reading.position
            if reading.changes:
                self._on_loop(self._deliver, Batch(str(position), _tasks(reading.changes), missed=not reading.complete))
            now = time.monotonic()
            if now >= look_at:
                look_at = now + POLL_S
                if ids := [*self._waits]:
                    self._on_loop(self._compare, ids, watcher.standings(ids))
            if now >= renew_at:
                renew_at = now + RENEW_S
                watcher.forget()
                self._since_ms = watcher.watch()
                if self._since_ms > position.ms:  # it had run out: the machine slept
                    self._on_loop(self._deliver, Batch(str(position), [], missed=True))
            if not self._subscriptions and not self._waits and now - self._used > IDLE_S:
                self._wanted.clear()
                self._since_ms = 0
                self._on_loop(self._rest)
                watcher.unwatch()
                return
            watcher.listen(POLL_S)
            gap_s = max(GAP_S, GAP_A_LISTENER_S * len(self._subscriptions))
            self._stop.wait(max(0.0, read_at + gap_s - time.monotonic()))  # not at all after a quiet time

    def _begin(self, watcher: Watcher) -> tuple[Position, int]:
        """Where hearing begins: past everything that was written before anybody knew of the watch."""
        since_ms = watcher.watch()
        position = watcher.read(None).position
        start, deadline = position.xmax, time.monotonic() + SETTLE_S
        while position.xmin < start and time.monotonic() < deadline and not self._stop.wait(GAP_S):
            position = watcher.read(None).position
        return position, since_ms

    def _rest(self) -> None:
        """On the loop, since a listener may just have come."""
        self._live.clear()
        if self._subscriptions or self._waits:
            self._wanted.set()

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None  # noqa: S101 - for mypy
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # it has been closed
            self._stop.set()


def _tasks(changes: list[str]) -> list[dict[str, Any]]:
    return [task for text in changes for task in json.loads(text)]
