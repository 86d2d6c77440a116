"""The pure-Python twin of the native ready queue and histogram: the same classes, the same behaviour, run by the same
tests.

It says in few lines what `csrc/priority_queue.pyx` and `csrc/histogram.pyx` do fast, and it runs where a simulator
needs a queue without threads.  `pysched.engine.queue` chooses between the two.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import Counter, deque

from pysched import policy

CLASSES = 3
MAX_LANES = 256
LONGEST_NS = 4_000_000_000_000_000_000
CELLS_A_DOUBLING = 64
LONGEST_LATENCY_NS = 2**58 - 1
LOOKS = 16  # a look for overdue handles each 1/16 of the ageing time


def _whole(field: str, value: int, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{field}: {value!r} is no int")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} is out of range; use {low} … {high}")
    return value


def _moment(now_ns: int | None) -> int:
    """What the caller says that it is on CLOCK_BOOTTIME; None: ask the clock."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) if now_ns is None else _whole("now_ns", now_ns, 0, LONGEST_NS)


def _ns(field: str, seconds: float) -> int:
    if not seconds >= 0:
        raise ValueError(f"{field}: {seconds} is no duration; use seconds ≥ 0")
    return int(min(seconds, LONGEST_NS / 1e9) * 1e9)


class _Bucket:
    """The handles of one priority of one lane."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, int, int]] = []  # (-rank, sequence, handle, queued_ns)
        self.overdue: deque[int] = deque()

    def __len__(self) -> int:
        return len(self.heap) + len(self.overdue)

    def age(self, priority: int, now_ns: int, ageing_ns: int) -> None:
        """Move what is overdue behind what was found before, in order."""
        found = [entry for entry in self.heap if policy.is_overdue(priority, now_ns - entry[3], ageing_ns)]
        if found:
            self.heap = [entry for entry in self.heap if not policy.is_overdue(priority, now_ns - entry[3], ageing_ns)]
            heapq.heapify(self.heap)
            self.overdue.extend(entry[2] for entry in sorted(found))


class ReadyQueue:
    """`lanes` (1 … 256) × three priorities of buckets ordered by (rank descending, sequence ascending)."""

    def __init__(self, lanes: int, ageing_s: float = 0.0) -> None:
        self._ageing_ns = _ns("ageing_s", ageing_s)
        _whole("lanes", lanes, 1, MAX_LANES)
        self._buckets = [tuple(_Bucket() for _ in range(CLASSES)) for _ in range(lanes)]
        self._turns = itertools.cycle(range(lanes))
        self._looks_ns = [0] * lanes
        self._overdue_turn = 0

    def push(
        self, priority: int, rank: int, sequence: int, handle: int, lane: int = -1, now_ns: int | None = None
    ) -> None:
        """Queue `handle` (0 … 2**64-1).  lane -1: the one with fewer waiting of two neighbours, which rotate with
        each such push, the first if equal."""
        _whole("lane", lane, -1, len(self._buckets) - 1)
        _whole("priority", priority, 0, CLASSES - 1)
        _whole("rank", rank, -(2**31), 2**31 - 1)
        _whole("sequence", sequence, 0, 2**64 - 1)
        _whole("handle", handle, 0, 2**64 - 1)
        entry = (-rank, sequence, handle, _moment(now_ns))
        if lane < 0:
            lane = self._balance()
        heapq.heappush(self._buckets[lane][priority].heap, entry)

    def pop(self, lane: int, now_ns: int | None = None) -> int | None:
        """The next handle for `lane`: of each priority its own bucket first, then the following lanes' in turn;
        what is overdue comes after HIGH, and each fourth time before it."""
        _whole("lane", lane, 0, len(self._buckets) - 1)
        self._age(_moment(now_ns))
        overdue = any(bucket.overdue for buckets in self._buckets for bucket in buckets)
        turn, first = divmod(self._overdue_turn, policy.OVERDUE_SHARE)
        if overdue:
            self._overdue_turn += 1
            if first == 0:
                return self._pop_overdue(turn)
        for priority in range(CLASSES):
            if priority == 1 and overdue:
                return self._pop_overdue(turn)
            for buckets in self._buckets[lane:] + self._buckets[:lane]:
                if buckets[priority].heap:
                    return heapq.heappop(buckets[priority].heap)[2]
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

    def _age(self, now_ns: int) -> None:
        for lane, look_ns in enumerate(self._looks_ns):
            if self._ageing_ns and now_ns >= look_ns:
                self._looks_ns[lane] = now_ns + self._ageing_ns // LOOKS
                for priority, bucket in enumerate(self._buckets[lane]):
                    bucket.age(priority, now_ns, self._ageing_ns)

    def _pop_overdue(self, turn: int) -> int:
        """Classes and lanes come first in turn, so that none waits behind another's backlog; there is one."""
        lane = turn // 2 % len(self._buckets)
        classes = (1, 2) if turn % 2 == 0 else (2, 1)
        rings = [buckets[cls].overdue for buckets in self._buckets[lane:] + self._buckets[:lane] for cls in classes]
        return next(ring for ring in rings if ring).popleft()


class Histogram:
    """Durations in ns, in cells that err by at most 1/128 of the value: each power of two is cut into 64 of a width."""

    def __init__(self) -> None:
        self._cells: Counter[int] = Counter()  # by the cell's first value

    def record(self, ns: int, times: int = 1) -> None:
        ns = min(_whole("ns", ns, 0, LONGEST_NS), LONGEST_LATENCY_NS)
        self._cells[ns - ns % _width(ns)] += _whole("times", times, 0, 2**64 - 1)

    def merge(self, other: Histogram) -> Histogram:
        """A new one that holds what both do."""
        merged = Histogram()
        merged._cells = self._cells + other._cells
        return merged

    def since(self, earlier: Histogram) -> Histogram:
        """A new one of what came after `earlier`, which is an earlier reading of the same; else `ValueError`."""
        if earlier._cells - self._cells:
            raise ValueError("earlier: it holds more than this histogram; give an earlier reading of the same")
        difference = Histogram()
        difference._cells = self._cells - earlier._cells
        return difference

    @property
    def count(self) -> int:
        return self._cells.total()

    @property
    def mean(self) -> float | None:
        """None if it is empty."""
        count = self.count
        return math.fsum(_middle(begin) * n for begin, n in self._cells.items()) / count if count else None

    def quantile(self, q: float) -> int | None:
        """The nearest-rank quantile, 0 < q ≤ 1; None if it is empty."""
        if not 0 < q <= 1:
            raise ValueError(f"q: {q} is no quantile; use 0 < q ≤ 1")
        rank = min(max(math.ceil(q * self.count), 1), self.count)
        seen = 0
        for begin, _, n in self.cells_in_use():
            seen += n
            if seen >= rank:
                return _middle(begin)
        return None

    def cells_in_use(self) -> list[tuple[int, int, int]]:
        """(first ns, ns after the last, how many) of each cell that is not empty, ascending."""
        return [(begin, begin + _width(begin), n) for begin, n in sorted(self._cells.items()) if n]


def _width(ns: int) -> int:
    """Of the cell that holds the value."""
    return 1 << max(0, ns.bit_length() - CELLS_A_DOUBLING.bit_length())


def _middle(begin: int) -> int:
    return begin + _width(begin) // 2
