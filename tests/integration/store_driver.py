"""A node in the store's eyes, which does what a test says and no more."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar

import psycopg

from pysched.model import AttemptKey, Claim, Exit, NodeInfo, Outcome, Priority, Record, Started, State
from pysched.store.store import Store
from pysched.task import Task

SOURCE = uuid.UUID(int=1)
DEADLINE_S = 30.0
LATE = timedelta(seconds=1)

T = TypeVar("T")


def now() -> datetime:
    return datetime.now(timezone.utc)


def task(task_id: str, **fields: Any) -> Task:
    return Task(id=task_id, **fields)


def accept(store: Store, *tasks: Task, atomic: bool = False) -> list[Any]:
    return list(store.accept(tasks, source=SOURCE, atomic=atomic))


def states(store: Store, *ids: str) -> list[str]:
    return [store.get(task_id)["status"] for task_id in ids]


def success(key: AttemptKey, **fields: Any) -> Outcome:
    return outcome(key, exit_code=0, **fields)


def outcome(
    key: AttemptKey,
    *,
    state: State = State.SUCCEEDED,
    next_state: State | None = None,
    reason: str | None = None,
    delay_s: float = 0.0,
    counts: bool = True,
    void: bool = False,
    crashed: bool = False,
    holder: uuid.UUID | None = None,
    **fields: Any,
) -> Outcome:
    moment = now()
    end = {"pid": 7, "started_at": moment - timedelta(milliseconds=30), "finished_at": moment, **fields}
    return Outcome(
        key=key,
        exit=Exit(**end),
        attempt_state=state,
        next_state=next_state or state,
        reason=reason,
        delay_s=delay_s,
        counts=counts,
        void=void,
        crashed=crashed,
        holder=holder,
    )


class Node:
    def __init__(
        self, store: Store, *, home: uuid.UUID | None = None, lease_s: float = 3600.0, cpus: int = 4000
    ) -> None:
        self.store = store
        self.home = home or uuid.uuid4()
        self.incarnation = uuid.uuid4()
        self.info = NodeInfo(
            incarnation=self.incarnation, home=self.home, host="host", pid=1, workers=4, lanes=2, version="1", cpus=cpus
        )
        store.register(self.info, lease_s)

    def claim(self, limit: int = 1_000, lowest: Priority = Priority.LOW) -> list[Claim]:
        return self.store.claim(self.incarnation, lowest=lowest, limit=limit)

    def key(self) -> AttemptKey:
        """Claim the one task that is ready."""
        (claim,) = self.claim()
        return claim.key

    def start(self, *keys: AttemptKey) -> list[AttemptKey]:
        return self.store.start([Started(key=key, pid=7, started_at=now()) for key in keys])

    def finish(self, *outcomes: Outcome) -> tuple[list[Record], list[AttemptKey]]:
        return self.store.finish(outcomes, home=self.home)

    def run(self, state: State = State.SUCCEEDED, reason: str | None = None) -> list[Record]:
        """Claim all that is ready, start it, and end it so."""
        keys = [claim.key for claim in self.claim()]
        assert self.start(*keys) == []
        records, disowned = self.finish(*(outcome(key, state=state, reason=reason) for key in keys))
        assert disowned == []
        return records

    def expire(self, url: str) -> None:
        """Let the lease run out, without waiting for it."""
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(
                "UPDATE pysched.nodes SET lease_until = now() - interval '1 second' WHERE incarnation = %s",
                (self.incarnation,),
            )


def at_once(*works: Callable[[], T]) -> list[T]:
    """Run each in a thread of its own, all let go together; their results, or the first one's exception."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            barrier.wait(DEADLINE_S)
            results[index] = works[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "a thread hangs"
    for error in errors:
        raise error
    return results


def begin(work: Callable[[], object]) -> threading.Thread:
    """In a thread that the caller joins."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def await_blocked(url: str, count: int = 1) -> None:
    """Until so many transactions of this database wait for a lock."""
    deadline = time.monotonic() + DEADLINE_S
    with psycopg.connect(url, autocommit=True) as conn:
        while True:
            waiting = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
            if waiting is not None and waiting[0] >= count:
                return
            assert time.monotonic() < deadline, "nobody waits for a lock"
            time.sleep(0.005)


def ids(items: Iterable[Any]) -> list[str]:
    return [item.id for item in items]
