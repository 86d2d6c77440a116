"""Ageing: whatever HIGH does, what waits starts within a bound, and HIGH keeps its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysched import _core
from pysched.engine import twin
from pysched.model import Priority
from pysched.policy import OVERDUE_SHARE, is_overdue, overdue_claims

IMPLEMENTATIONS = pytest.mark.parametrize("queue_type", [_core.ReadyQueue, twin.ReadyQueue], ids=["native", "python"])
QueueType = Callable[..., Any]

AGEING_NS = 1_600
LOOK_NS = AGEING_NS // 16
ranks = st.sampled_from([0, 0, 5, -5, 2**31 - 1, -(2**31)])


@IMPLEMENTATIONS
@settings(max_examples=60, deadline=None, database=None)
@given(
    lanes=st.integers(1, 3),
    waiting=st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 2), ranks, st.integers(-1, 2)), max_size=60),
    high=st.lists(st.tuples(ranks, st.integers(0, 3)), min_size=1, max_size=5),
    popping=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    step_ns=st.integers(1, 50),
)
def test_every_ticket_starts_within_the_bound_under_any_stream_of_high(
    queue_type: QueueType,
    lanes: int,
    waiting: list[tuple[int, int, int, int]],
    high: list[tuple[int, int]],
    popping: list[int],
    step_ns: int,
) -> None:
    """Each pop is preceded by as many new HIGH ones as the stream says, and at least one waits at all times."""
    queue = queue_type(lanes, ageing_s=AGEING_NS / 1e9)
    arrivals = sorted(waiting)
    found_by: dict[int, int] = {}  # number of the pop at which the handle is overdue and found for certain
    started: dict[int, int] = {}
    now_ns = pops = sequence = pushed = 0
    while len(started) < len(arrivals):
        while pushed < len(arrivals) and arrivals[pushed][0] <= now_ns:
            _, priority, rank, lane = arrivals[pushed]
            queue.push(priority, rank, sequence, pushed, min(lane, lanes - 1), now_ns)
            due = now_ns + priority * AGEING_NS + LOOK_NS
            found_by[pushed] = pops + -(-(due - now_ns) // step_ns)
            pushed += 1
            sequence += 1
        rank, burst = high[pops % len(high)]
        for _ in range(burst or queue.depths()[0] == 0):
            queue.push(0, rank, sequence, 2**32, now_ns=now_ns)
            sequence += 1
        handle = queue.pop(popping[pops % len(popping)] % lanes, now_ns)
        if handle != 2**32:
            started[handle] = pops
        pops += 1
        now_ns += step_ns
        for other, at_most in found_by.items():
            if other not in started:
                # in front of it: any of the others, and each has its turn within this many pops
                assert pops <= at_most + 2 * OVERDUE_SHARE * lanes * (len(arrivals) + 1)


@IMPLEMENTATIONS
def test_high_keeps_its_share_above_a_backlog_that_is_overdue(queue_type: QueueType) -> None:
    queue = queue_type(1, ageing_s=1)
    for handle in range(100):
        queue.push(1 + handle % 2, 0, handle, handle, now_ns=0)
        queue.push(0, 0, handle, 1_000 + handle, now_ns=0)
    order = [queue.pop(0, 3_000_000_000) for _ in range(200)]
    late = [i for i, handle in enumerate(order[:132]) if handle < 1_000]
    assert late == list(range(0, 132, OVERDUE_SHARE))  # while HIGH lasts
    assert [handle for handle in order if handle >= 1_000] == list(range(1_000, 1_100))
    for priority in (1, 2):
        of_one = [handle for handle in order if handle < 1_000 and handle % 2 == priority - 1]
        assert of_one == sorted(of_one)


@IMPLEMENTATIONS
def test_order_is_the_contracts_until_something_is_overdue(queue_type: QueueType) -> None:
    queue = queue_type(1, ageing_s=1)
    for handle, priority in enumerate([2, 1, 0, 2, 1, 0]):
        queue.push(priority, 0, handle, handle, now_ns=0)
    assert [queue.pop(0, 999_999_999) for _ in range(3)] == [2, 5, 1]
    queue.push(0, 0, 9, 9, now_ns=1_000_000_000)
    # the look was just now, so the next one is a sixteenth of a second away
    assert queue.pop(0, 1_000_000_000) == 9
    queue.push(0, 0, 10, 10, now_ns=1_100_000_000)
    assert [queue.pop(0, 1_100_000_000) for _ in range(5)] == [4, 10, 0, 3, None]
    assert len(queue) == 0


@IMPLEMENTATIONS
@pytest.mark.parametrize("ageing_s", [-1, float("nan")])
def test_a_time_that_is_none_is_refused(queue_type: QueueType, ageing_s: float) -> None:
    with pytest.raises(ValueError, match="ageing_s"):
        queue_type(1, ageing_s)


def test_nothing_is_overdue_without_ageing_and_high_never_is() -> None:
    assert not any(is_overdue(priority, 1e9, 0) for priority in range(3))
    assert [is_overdue(priority, 20.0, 10.0) for priority in range(3)] == [False, True, True]
    assert [is_overdue(priority, 19.9, 10.0) for priority in range(3)] == [False, True, False]
    assert overdue_claims(claimed=7, limit=8, ageing_s=0) == []


@given(st.integers(0, 1_000_000), st.lists(st.integers(1, 1_024), min_size=1, max_size=100))
def test_over_any_run_of_claims_each_class_has_half_of_the_share(claimed: int, limits: Sequence[int]) -> None:
    totals = {Priority.MED: 0, Priority.LOW: 0}
    for limit in limits:
        parts = overdue_claims(claimed=claimed, limit=limit, ageing_s=10)
        assert sum(part.limit for part in parts) <= limit
        for part in parts:
            assert part.after_s == 10 * part.priority
            totals[part.priority] += part.limit
        claimed += limit
    for total in totals.values():
        assert abs(total - sum(limits) / (2 * OVERDUE_SHARE)) < 1


def test_claims_of_one_task_each_have_their_turn() -> None:
    turns = [overdue_claims(claimed=i, limit=1, ageing_s=10) for i in range(40)]
    for priority in (Priority.MED, Priority.LOW):
        when = [i for i, parts in enumerate(turns) if any(part.priority is priority for part in parts)]
        assert {later - earlier for earlier, later in pairwise(when)} == {2 * OVERDUE_SHARE}
