"""What tasks ask for beside a worker (processors, memory, GPUs), what nodes have of it, and which of the tasks that
wait are to be claimed: pure, like `policy`.

Amounts are whole numbers: thousandths of a processor, bytes, thousandths of a GPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

MEMORY_LEAST = 2**20  # bytes; no process starts with less
MEMORY_MOST = 2**50
_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\Z", re.IGNORECASE)


class Demand(NamedTuple):
    """An amount of everything; the demand of a task, or what a node has, or has free."""

    cpus: int = 0  # thousandths
    memory: int = 0  # bytes
    gpus: int = 0  # thousandths

    def within(self, other: Demand) -> bool:
        """Whether there is enough of all that is asked for; what is not asked for may even be overdrawn."""
        # Spelt out, as below: this is asked for each task that is claimed.
        cpus, memory, gpus = self
        return (
            (cpus == 0 or cpus <= other.cpus)
            and (memory == 0 or memory <= other.memory)
            and (gpus == 0 or gpus <= other.gpus)
        )

    def without(self, other: Demand) -> Demand:
        return Demand(self.cpus - other.cpus, self.memory - other.memory, self.gpus - other.gpus)

    def at_most(self, other: Demand) -> Demand:
        return Demand(*map(min, self, other))


NOTHING = Demand()
PLENTY = Demand(2**31 - 1, 2**60, 2**31 - 1)


def thousandths(amount: float) -> int:
    """Never less than asked for."""
    return math.ceil(round(amount * 1000, 6))


def size(text: str) -> int:
    """Bytes, from `4GiB`, `512 MB` or a plain number; `ValueError`."""
    match = _SIZE.match(text.strip())
    unit = _UNITS.get(match[2].lower()) if match is not None else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is no size; use bytes, or text as 512MiB or 4GB")
    return int(float(match[1]) * unit)


def shown(demand: Demand) -> str:
    """For people: `2 cpus, 4.0 GiB, 0.5 gpus`."""
    parts = [
        f"{demand.cpus / 1000:g} cpu{'' if demand.cpus == 1000 else 's'}" if demand.cpus > 0 else "",
        memory(demand.memory) if demand.memory > 0 else "",
        f"{demand.gpus / 1000:g} gpu{'' if demand.gpus == 1000 else 's'}" if demand.gpus > 0 else "",
    ]
    return ", ".join(filter(None, parts)) or "nothing"


def memory(amount: int) -> str:
    """For people: `512.0 MiB`."""
    unit = "KiB" if amount < 2**20 else "MiB" if amount < 2**30 else "GiB"
    return f"{amount / _UNITS[unit.lower()]:.1f} {unit}"


# ── claiming ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a node can take of tasks that ask for something.

    `ahead`: so many may be taken beyond `free`, to wait here for what will be free in a moment.  `reserve_after_s`: one
    that has waited so long in the store may be taken though it does not fit, so that room is kept for it here; None:
    not now.  Others, with nothing to do, come before that.  `again_after`: so many ends later it is worth a claim to
    see what fits then: one claim of many costs less than many of one.
    """

    capacity: Demand
    free: Demand
    ahead: int = 0
    reserve_after_s: float | None = None
    again_after: int = 1

    @property
    def reach(self) -> Demand:
        """What asks for more than this is not taken now."""
        if self.ahead > 0 or self.reserve_after_s is not None:
            return self.capacity
        return Demand(*(max(0, amount) for amount in self.free.at_most(self.capacity)))

    def after(self, taken: Sequence[Candidate]) -> Room:
        """What is left once these are taken."""
        free = self.free
        for candidate in taken:
            free = free.without(candidate.demand or NOTHING)
        return replace(self, free=free)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task that could be claimed."""

    id: str
    demand: Demand | None  # None: it asks for a worker alone
    waited_s: float


def choose(candidates: Sequence[Candidate], *, limit: int, room: Room) -> tuple[list[str], bool]:
    """Which of `candidates`, in their order, to claim; and whether one is left that will fit once more is free."""
    chosen: list[str] = []
    free, ahead, reserve_after_s = room.free, room.ahead, room.reserve_after_s
    left = False
    for candidate in candidates:
        if len(chosen) == limit:
            break
        demand = candidate.demand
        if demand is not None:
            if not demand.within(room.capacity):
                continue
            if not demand.within(free):
                if ahead > 0:
                    ahead -= 1
                elif reserve_after_s is not None and candidate.waited_s >= reserve_after_s:
                    reserve_after_s = None
                else:
                    left = True
                    continue
            free = free.without(demand)
        chosen.append(candidate.id)
    return chosen, left
