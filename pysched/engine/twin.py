"""The pure-Python twin of the native ready queue: the same class, the same behaviour, run by the same tests.

It says in few lines what `csrc/priority_queue.pyx` does fast, and it runs where a simulator needs a queue
without threads.  `pysched.engine.queue` chooses between the two.
"""

from __future__ import annotations

import heapq
import itertools

CLASSES = 3
MAX_LANES = 256


def _whole(field: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field}: {value!r} is no int")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} is out of range; use {low} … {high}")
    return value


class ReadyQueue:
    """`lanes` (1 … 256) × three priorities of buckets ordered by (rank descending, sequence ascending)."""

    def __init__(self, lanes: int) -> None:
        _whole("lanes", lanes, 1, MAX_LANES)
        # One heap a bucket; entries are (-rank, sequence, handle).
        self._buckets: list[tuple[list[tuple[int, int, int]], ...]] = [
            tuple([] for _ in range(CLASSES)) for _ in range(lanes)
        ]
        self._turns = itertools.cycle(range(lanes))

    def push(self, priority: int, rank: int, sequence: int, handle: int, lane: int = -1) -> None:
        """Queue `handle` (0 … 2**64-1).  lane -1: the one with fewer waiting of two neighbours, which rotate with
        each such push, the first if equal."""
        _whole("lane", lane, -1, len(self._buckets) - 1)
        _whole("priority", priority, 0, CLASSES - 1)
        _whole("rank", rank, -(2**31), 2**31 - 1)
        _whole("sequence", sequence, 0, 2**64 - 1)
        _whole("handle", handle, 0, 2**64 - 1)
        if lane < 0:
            lane = self._balance()
        heapq.heappush(self._buckets[lane][priority], (-rank, sequence, handle))

    def pop(self, lane: int) -> int | None:
        """The next handle for `lane`: of each priority its own bucket first, then the following lanes' in turn."""
        _whole("lane", lane, 0, len(self._buckets) - 1)
        for priority in range(CLASSES):
            for buckets in self._buckets[lane:] + self._buckets[:lane]:
                if buckets[priority]:
                    return heapq.heappop(buckets[priority])[2]
        return None

    def depths(self) -> tuple[int, int, int]:
        """Waiting handles by priority (HIGH, MED, LOW)."""
        high, med, low = (sum(len(buckets[priority]) for buckets in self._buckets) for priority in range(CLASSES))
        return high, med, low

    def __len__(self) -> int:
        return sum(self.depths())

    def _balance(self) -> int:
        lane = next(self._turns)
        neighbour = (lane + 1) % len(self._buckets)
        return neighbour if self._waiting(neighbour) < self._waiting(lane) else lane

    def _waiting(self, lane: int) -> int:
        return sum(map(len, self._buckets[lane]))
