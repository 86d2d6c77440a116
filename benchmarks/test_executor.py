"""How much less `pysched.Executor` takes than ThreadPoolExecutor, with 8 workers and calls that do nothing.

Both run in one process, a round of each in turn, so that what else the machine does meets both; each round's ratio is
taken, and the median counts.  Not part of the tests: `pytest benchmarks/test_executor.py`.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor as StandardExecutor
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest

from pysched import Executor

WORKERS = 8
ROUNDS = 9


def nothing() -> None:
    pass


def results(executor: StandardExecutor, calls: int) -> None:
    for future in [executor.submit(nothing) for _ in range(calls)]:
        future.result()


def mapped(executor: StandardExecutor, calls: int) -> None:
    for _ in executor.map(abs, range(calls)):
        pass


def completed(executor: StandardExecutor, calls: int) -> None:
    for future in as_completed([executor.submit(nothing) for _ in range(calls)]):
        future.result()


def round_trips(executor: StandardExecutor, calls: int) -> None:
    for _ in range(calls):
        executor.submit(nothing).result()


def all_at_once(executor: StandardExecutor, calls: int) -> None:
    """Calls that wait for one another: each needs a worker of its own to be awake."""
    for _ in range(calls // WORKERS):
        barrier = threading.Barrier(WORKERS)
        for future in [executor.submit(barrier.wait) for _ in range(WORKERS)]:
            future.result()


def asleep(executor: StandardExecutor, calls: int) -> None:
    for _ in range(calls // WORKERS):
        for future in [executor.submit(time.sleep, 0.02) for _ in range(WORKERS)]:
            future.result()


def seconds(work: Callable[[StandardExecutor, int], None], executor: StandardExecutor, calls: int) -> float:
    began = time.perf_counter()
    work(executor, calls)
    return time.perf_counter() - began


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("work", "calls", "at_least"),
    [
        (results, 50_000, 10.0),
        (mapped, 50_000, 10.0),
        (completed, 20_000, 0.0),  # most of it is as_completed itself
        (round_trips, 2_000, 0.0),  # two wake-ups through the kernel, whoever makes them
        (all_at_once, 1_600, 0.0),
        (asleep, 80, 0.9),  # nothing to win: shows that all eight sleep at once
    ],
)
def test_ratio(
    work: Callable[[StandardExecutor, int], None], calls: int, at_least: float, say: Callable[[str], None]
) -> None:
    with Executor(WORKERS) as ours, ThreadPoolExecutor(WORKERS) as standard:
        work(ours, calls // 10)
        work(standard, calls // 10)
        rounds = [(seconds(work, standard, calls), seconds(work, ours, calls)) for _ in range(ROUNDS)]
    ratios = sorted(theirs / mine for theirs, mine in rounds)
    median = statistics.median(ratios)
    say(
        f"{work.__name__:12} {median:6.1f}× ThreadPoolExecutor ({ratios[0]:.1f} … {ratios[-1]:.1f}); a call:"
        f" {statistics.median(mine for _, mine in rounds) / calls * 1e6:.2f} µs"
        f" against {statistics.median(theirs for theirs, _ in rounds) / calls * 1e6:.2f} µs"
    )
    assert median >= at_least
