"""What a node has measured goes to the store when it has changed."""

from __future__ import annotations

import threading

import pytest

from pysched.engine import publisher
from pysched.engine.publisher import Publisher
from pysched.errors import StoreError

TIMEOUT_S = 60.0


class Measures:
    """A publisher under test, and what it counts; of the last counts it gets as many as it wants."""

    def __init__(self, *counts: int, refusals: int = 0) -> None:
        self._left = list(counts)
        self._refusals = refusals
        self._told_all = threading.Event()
        self._published: list[int] = []

    def published(self) -> list[int]:
        """The counts at which something was published, once all have been told."""
        running = Publisher(self._counts, self._publish, period_s=0.001)
        running.start()
        assert self._told_all.wait(TIMEOUT_S)
        running.stop()
        return self._published

    def _counts(self) -> int:
        self._now = self._left[0]
        if len(self._left) > 1:
            del self._left[0]
        else:
            self._told_all.set()
        return self._now

    def _publish(self) -> None:
        if self._refusals:
            self._refusals -= 1
            raise StoreError("the store is away")
        self._published.append(self._now)


def test_only_what_has_changed_is_published() -> None:
    assert Measures(1, 1, 2, 2, 1).published() == [1, 2, 1]


def test_what_the_store_did_not_take_is_published_again() -> None:
    assert Measures(1, 1, 1, refusals=2).published() == [1]


def test_before_the_store_forgets_it_the_same_is_published_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "REPEAT_S", 0.0)
    assert Measures(1, 1, 1).published()[:3] == [1, 1, 1]
