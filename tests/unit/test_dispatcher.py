"""When the dispatcher claims: at once on news, and never again before there is some."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import cast

import pytest

from pysched._core import Core, Launch, Pattern, Program
from pysched.engine import dispatcher
from pysched.engine.attempts import Attempts
from pysched.engine.dispatcher import Dispatcher
from pysched.engine.starting import Starter
from pysched.model import AttemptKey, Claim, Priority
from pysched.resources import NOTHING
from pysched.task import Task

DEADLINE_S = 60.0


class StillCore:
    """Starts nothing: what is submitted waits, until a test says otherwise."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.running = 0
        self.waiting = [0, 0, 0]

    def counters(self) -> dict[str, int]:
        return {"started": 0}

    def depths(self) -> tuple[int, int, int]:
        high, med, low = self.waiting
        return high, med, low

    def submit(self, launches: Sequence[Launch]) -> None:
        for launch in launches:
            self.waiting[launch.priority] += 1

    def arm(self, delay_s: float, key: int) -> None:
        raise AssertionError("nothing is scheduled")


class Claims:
    """The store's side: `ready` tasks by priority, and how often it was asked."""

    def __init__(self) -> None:
        self.ready: list[Claim] = []
        self.asked: list[Priority] = []
        self.fits = 1_000
        self._changed = threading.Condition()

    def put(self, priority: Priority, count: int) -> None:
        with self._changed:
            self.ready += [_claim(priority, len(self.ready) + number) for number in range(count)]

    def take(self, lowest: Priority, limit: int, overdue: object) -> Sequence[Claim]:
        with self._changed:
            self.asked.append(lowest)
            best = sorted((c for c in self.ready if c.priority <= lowest), key=lambda claim: claim.priority)
            best = best[: min(limit, self.fits)]
            self.ready = [claim for claim in self.ready if claim not in best]
            self._changed.notify_all()
            return best

    def wait(self, until: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(until, DEADLINE_S)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Claims:
    monkeypatch.setattr(dispatcher, "POLL_S", 3600.0)  # news alone must do
    return Claims()


@contextmanager
def dispatching(
    core: StillCore, claims: Claims, attempts: Attempts | None = None, short: Callable[[], int] = lambda: 0
) -> Iterator[Dispatcher]:
    attempts = Attempts() if attempts is None else attempts
    starter = Starter(
        cast(Core, core),
        attempts,
        prepare=lambda key, task, params: _PROGRAM,
        unstartable=lambda claim, error: None,
        cancel=lambda handle: None,
        capacity=NOTHING,
    )
    instance = Dispatcher(
        cast(Core, core),
        attempts,
        claim=claims.take,
        promote=lambda: None,
        start=starter.start,
        ageing_s=0.0,
        hold=lambda: None,
        fenced=lambda: False,
        alone=lambda: False,
        reconcile=lambda: None,
        short=short,
        settled=lambda: None,
    )
    instance.start()
    try:
        yield instance
    finally:
        instance.stop()


def test_work_for_a_node_that_has_found_nothing_is_claimed_at_once(claims: Claims) -> None:
    with dispatching(StillCore(workers=4), claims) as instance:
        claims.wait(lambda: len(claims.asked) == 1)  # nothing there
        claims.put(Priority.MED, 2)
        instance.work()
        claims.wait(lambda: not claims.ready)


def test_work_of_a_higher_class_is_claimed_by_a_node_full_of_lower_ones(claims: Claims) -> None:
    core = StillCore(workers=2)
    with dispatching(core, claims) as instance:
        claims.put(Priority.LOW, 2)
        instance.work()
        claims.wait(lambda: not claims.ready)
        claims.wait(lambda: claims.asked[-1] == Priority.MED)  # no room for LOW; there was nothing else
        claims.put(Priority.HIGH, 1)
        instance.work()
        claims.wait(lambda: not claims.ready)
    assert core.waiting == [1, 0, 2]


def test_what_did_not_fit_is_asked_for_again_after_as_many_ends_as_make_it_worth_a_claim(claims: Claims) -> None:
    """One that takes several costs little more than one that takes one."""
    attempts = Attempts()
    released: list[int] = []  # at each claim

    def short() -> int:
        released.append(attempts.released)
        return 2 if claims.ready else 0

    claims.fits = 3
    claims.put(Priority.LOW, 6)
    with dispatching(StillCore(workers=10), claims, attempts, short) as instance:
        deadline = time.monotonic() + DEADLINE_S
        while len(attempts) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        for _ in range(2):
            attempts.remove(attempts.handles()[:1])
            for _ in range(100):
                instance.room()
                os.sched_yield()
        claims.wait(lambda: not claims.ready)
    assert released == [0, 2]


def test_nothing_is_asked_twice_without_news(claims: Claims) -> None:
    with dispatching(StillCore(workers=2), claims) as instance:
        claims.put(Priority.LOW, 1)
        instance.work()
        claims.wait(lambda: not claims.ready)
        instance.room()
        claims.put(Priority.LOW, 1)  # nobody says so
        for _ in range(100):
            instance.room()
    assert len(claims.asked) <= 3  # at the start, for the news, and once more if the first answer came before it


def _claim(priority: Priority, number: int) -> Claim:
    return Claim(
        key=AttemptKey(id=f"{priority.name}-{number}", attempt=1, token=number),
        priority=priority,
        rank=0,
        sequence=number,
        spec=Task(command=["/bin/true"], cpus=1).spec(),
        failures=0,
        submitted_at=datetime.now(timezone.utc),
        waited_s=0.0,
    )


_PROGRAM = Program(
    Pattern(argv=[b"/bin/true"], candidates=[b"/bin/true"], env=[], cwd=b"/", grace_s=1.0),
    "t", 1, "n", "/", ("o", "e", "r", "p"),
)  # fmt: skip
