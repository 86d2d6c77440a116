"""How much waits: asked again where the answer may have changed, and not where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pysched.engine import depths
from pysched.engine.depths import Depths, Found
from pysched.errors import StoreError
from pysched.model import Priority

EMPTY: Found = (dict.fromkeys(Priority, 0), 7)
FULL: Found = ({Priority.HIGH: 0, Priority.MED: 1, Priority.LOW: 0}, 8)


class Asked:
    def __init__(self, *answers: Found | Callable[[], Found]) -> None:
        self.left = list(answers)
        self.depths = Depths(self._ask)

    def _ask(self) -> Found:
        answer = self.left.pop(0)
        return answer() if callable(answer) else answer


def test_what_was_empty_is_not_asked_for_again_until_there_is_news() -> None:
    asked = Asked(EMPTY, FULL)
    assert [asked.depths.look() for _ in range(3)] == [EMPTY] * 3
    asked.depths.news()
    assert asked.depths.look() == FULL
    assert asked.left == []


def test_while_something_waits_it_is_asked_for_each_time() -> None:
    asked = Asked(FULL, FULL, EMPTY)
    assert [asked.depths.look() for _ in range(4)] == [FULL, FULL, EMPTY, EMPTY]


def test_news_that_come_while_it_asks_count() -> None:
    def told() -> Found:
        asked.depths.news()
        return EMPTY

    asked = Asked(told, FULL)
    assert [asked.depths.look() for _ in range(2)] == [EMPTY, FULL]


def test_news_that_are_lost_are_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depths, "POLL_S", 0.0)
    asked = Asked(EMPTY, FULL)
    assert [asked.depths.look() for _ in range(2)] == [EMPTY, FULL]


def test_without_an_answer_nothing_is_known() -> None:
    def away() -> Found:
        raise StoreError("the store is away")

    asked = Asked(EMPTY, away, FULL)
    assert asked.depths.look() == EMPTY
    asked.depths.news()
    with pytest.raises(StoreError):
        asked.depths.look()
    assert asked.depths.look() == FULL
