"""What does a ticket cost in the ready queue: time by itself and among 8 threads, and memory?  `make bench-queue`.

Each ratio is the median of rounds that run both sides one after the other.
"""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

bench = pytest.importorskip("_queue_bench", reason="built by `make bench-queue`")

PAIRS = 1_000_000  # pushes, each with its pop
ROUNDS = 7


def compare(what: str, ours: Callable[[], float], theirs: Callable[[], float]) -> float:
    """Median of ours / theirs, printed with both medians in ns and the spread."""
    rounds = [(ours(), theirs()) for _ in range(ROUNDS)]
    ratios = sorted(one / other for one, other in rounds)
    mine, other = (statistics.median(side) * 1e9 for side in zip(*rounds, strict=True))
    ratio = statistics.median(ratios)
    print(f"\n{what}: {mine:.1f} ns / {other:.1f} ns = {ratio:.4g} ({ratios[0]:.4g} … {ratios[-1]:.4g})")
    return ratio


def push_and_pop(threads: int, batch: int) -> float:
    return float(bench.push_and_pop(threads, PAIRS // threads, batch)) / PAIRS


def ring_and_add(threads: int, batch: int) -> float:
    return float(bench.ring_and_add(threads, PAIRS // threads, batch)) / PAIRS


def python_queue(threads: int) -> float:
    """Seconds a pair of `queue.PriorityQueue`, whose items are ordered as our tickets are."""
    pairs = 20_000 // threads
    line: queue.PriorityQueue[tuple[int, int, int]] = queue.PriorityQueue()
    gate = threading.Barrier(threads + 1)

    def work() -> None:
        gate.wait()
        for i in range(pairs):
            line.put((i % 3, 0, i))
            line.get()
        gate.wait()

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    gate.wait()
    begun = time.perf_counter()
    gate.wait()
    took = time.perf_counter() - begun
    for thread in running:
        thread.join()
    return took / (pairs * threads)


@pytest.mark.parametrize("threads", [1, 8])
def test_against_the_queue_of_python(threads: int) -> None:
    ratio = compare(
        f"{threads} threads, of PriorityQueue", lambda: push_and_pop(threads, 1), lambda: python_queue(threads)
    )
    assert ratio <= 1 / 20


@pytest.mark.parametrize("threads", [1, 8])
def test_against_a_ring_and_a_counter(threads: int) -> None:
    ratio = compare(
        f"{threads} threads, batches of 64, of ring + xadd",
        lambda: push_and_pop(threads, 64),
        lambda: ring_and_add(threads, 64),
    )
    assert ratio <= 3


@pytest.mark.parametrize(("threads", "lanes"), [(1, 2), (8, 8)])
def test_taking_one_ticket_at_a_time_from_another_lane(threads: int, lanes: int) -> None:
    """What taking half a bucket at once could save at most: the difference to a pop of the lane's own."""
    drained = [float(bench.drain_one_lane(threads, lanes, PAIRS, first)) / PAIRS * 1e9 for first in (0, 1) * ROUNDS]
    own, others = statistics.median(drained[::2]), statistics.median(drained[1::2])
    print(f"\n{threads} threads: {own:.1f} ns from lane 0 by lane 0 and on, {others:.1f} ns by lane 1 and on")
    assert others - own < 1_000  # of some 300,000 that a process costs


def test_a_million_tickets_fit_in_128_mib() -> None:
    script = """
import psutil
from pysched._core import ReadyQueue
process, queue = psutil.Process(), ReadyQueue(2)
before = process.memory_info().rss
for i in range(1_000_000):
    queue.push(i % 3, 0, i, i)
print(process.memory_info().rss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True)
    print(f"\n1,000,000 tickets: {int(done.stdout) / 2**20:.0f} MiB")
    assert int(done.stdout) <= 128 * 2**20
