"""The timers of a lane against a model in Python."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

bench = pytest.importorskip("_timer_bench", reason="built by `make sanitize` and `make bench-queue`")

TIMERS = 40  # some levels of the heap, and often armed twice
numbers = st.integers(0, TIMERS - 1)
moments = st.integers(0, 100) | st.integers(0, 4 * 10**18)  # many are equal


class TimersMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.heap = bench.TimerHeap(TIMERS)
        self.model: dict[int, int] = {}  # deadlines

    @rule(number=numbers, deadline_ns=moments)
    def arm(self, number: int, deadline_ns: int) -> None:
        self.heap.arm(number, deadline_ns)
        self.model[number] = deadline_ns

    @rule(deadlines=st.lists(st.tuples(numbers, moments), max_size=TIMERS))
    def arm_many(self, deadlines: list[tuple[int, int]]) -> None:
        for number, deadline_ns in deadlines:
            self.arm(number, deadline_ns)

    @rule(number=numbers)
    def disarm(self, number: int) -> None:
        self.heap.disarm(number)
        self.model.pop(number, None)

    @rule(now_ns=moments)
    def take_all_due(self, now_ns: int) -> None:
        while (number := self.heap.take_due(now_ns)) is not None:
            deadline_ns = self.model.pop(number)
            assert deadline_ns <= now_ns
            assert deadline_ns <= min(self.model.values(), default=deadline_ns)
        assert all(deadline_ns > now_ns for deadline_ns in self.model.values())

    @invariant()
    def the_next_one_is_the_earliest(self) -> None:
        assert len(self.heap) == len(self.model)
        assert self.heap.next() == min(self.model.values(), default=-1)


TestTimers = TimersMachine.TestCase
TestTimers.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
