"""How much less `pysched.Executor(processes=2)` takes than ProcessPoolExecutor(2), for calls that do nothing.

A round of each in turn; each round's ratio is taken, and the median counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor as StandardExecutor
from concurrent.futures import ProcessPoolExecutor

import pytest

from pysched import Executor

PROCESSES = 2
ROUNDS = 7


def results(executor: StandardExecutor, calls: int) -> None:
    for future in [executor.submit(abs, -1) for _ in range(calls)]:
        future.result()


def round_trips(executor: StandardExecutor, calls: int) -> None:
    for _ in range(calls):
        executor.submit(abs, -1).result()


def in_chunks(executor: StandardExecutor, calls: int) -> None:
    for _ in executor.map(abs, range(calls), chunksize=100):
        pass


def seconds(work: Callable[[StandardExecutor, int], None], executor: StandardExecutor, calls: int) -> float:
    began = time.perf_counter()
    work(executor, calls)
    return time.perf_counter() - began


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("work", "calls"), [(results, 5_000), (round_trips, 1_000), (in_chunks, 200_000)])
def test_ratio(work: Callable[[StandardExecutor, int], None], calls: int, say: Callable[[str], None]) -> None:
    with Executor(processes=PROCESSES) as ours, ProcessPoolExecutor(PROCESSES) as standard:
        work(ours, calls // 10)
        work(standard, calls // 10)
        rounds = [(seconds(work, standard, calls), seconds(work, ours, calls)) for _ in range(ROUNDS)]
    ratios = sorted(theirs / mine for theirs, mine in rounds)
    say(
        f"{work.__name__:12} {statistics.median(ratios):6.2f}× ProcessPoolExecutor"
        f" ({ratios[0]:.2f} … {ratios[-1]:.2f}): {calls / statistics.median(mine for _, mine in rounds):.0f} calls/s"
    )
