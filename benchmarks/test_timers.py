"""What do 1,000,000 pending timers cost: time to arm, to disarm and to take them, and memory?  `make bench-queue`.

The other side is `heapq`, the heap of Python in C, which cannot disarm.  Each ratio is the median of rounds that run
both sides one after the other.
"""

from __future__ import annotations

import heapq
import random
import statistics
import time

import pytest

bench = pytest.importorskip("_timer_bench", reason="built by `make bench-queue`")

MANY = 1_000_000
ROUNDS = 5


def python_heap() -> tuple[float, float]:
    """ns to push and to pop one of many."""
    deadlines = [(random.getrandbits(62), i) for i in range(MANY)]
    heap: list[tuple[int, int]] = []
    begun = time.perf_counter()
    for deadline in deadlines:
        heapq.heappush(heap, deadline)
    pushed = time.perf_counter()
    while heap:
        heapq.heappop(heap)
    return (pushed - begun) / MANY * 1e9, (time.perf_counter() - pushed) / MANY * 1e9


def native_heap(size: int) -> tuple[float, float, float]:
    """ns to arm one, to disarm one, to take one."""
    arm_s, disarm_s, take_s = bench.TimerHeap(size).measure()
    return arm_s / size * 1e9, disarm_s / size * 2e9, take_s / size * 2e9


def test_a_million_pending() -> None:
    rounds = [(native_heap(MANY), python_heap()) for _ in range(ROUNDS)]
    arm, disarm, take = (statistics.median(ours[i] for ours, _ in rounds) for i in range(3))
    arms = sorted(ours[0] / theirs[0] for ours, theirs in rounds)
    takes = sorted(ours[2] / theirs[1] for ours, theirs in rounds)
    few = [statistics.median(native_heap(1_000)[i] for _ in range(ROUNDS)) for i in range(3)]
    print(
        f"\n{MANY:,} timers, of heapq: arm {statistics.median(arms):.2f} ({arms[0]:.2f} … {arms[-1]:.2f}), "
        f"take {statistics.median(takes):.2f} ({takes[0]:.2f} … {takes[-1]:.2f}); "
        f"arm {arm:.0f} ns, disarm {disarm:.0f} ns, take {take:.0f} ns; "
        f"of 1,000: {few[0]:.0f}, {few[1]:.0f}, {few[2]:.0f} ns"
    )
    assert statistics.median(arms) <= 1
    assert statistics.median(takes) <= 1


def test_the_memory_of_a_million() -> None:
    heap = bench.TimerHeap(MANY)
    for number in range(MANY):
        heap.arm(number, number)
    print(f"\n{heap.bytes() / MANY:.1f} bytes a timer")
    assert heap.bytes() <= 64 * MANY
