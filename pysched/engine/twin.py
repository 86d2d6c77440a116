"""The pure-Python twin of the native ready queue: the same class, the same behaviour, run by the same tests.

It says in few lines what `csrc/priority_queue.pyx` does fast, and it runs where a simulator needs a queue
without threads.  `pysched.engine.queue` chooses between the two.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque

from pysched import policy

CLASSES = 3
MAX_LANES = 256
LONGEST_NS = 4_000_000_000_000_000_000
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
