"""How long attempts waited and ran, as nodes publish it and /metrics shows it: counts up to fixed bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pysched.model import Priority

# From a start that nobody waits for to a training over night.
BOUNDS_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 43_200.0)


class Cells(Protocol):
    """See `pysched._core.Histogram`."""

    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> float | None: ...
    def cells_in_use(self) -> list[tuple[int, int, int]]: ...


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of one kind and priority, since the node's start."""

    kind: str  # wait or run
    priority: str  # HIGH, MED or LOW
    up_to: list[int]  # how many took at most each of BOUNDS_S
    count: int
    sum_s: float


def dump(histograms: Mapping[tuple[Literal["wait", "run"], int], Cells]) -> str:
    """What `Core.histograms` gives, as JSON text."""
    return json.dumps(
        [
            [
                kind,
                Priority(priority).name,
                _up_to(cells),
                cells.count,
                cells.count * (cells.mean or 0) / 1e9,
            ]
            for (kind, priority), cells in histograms.items()
        ]
    )


def load(text: str) -> list[Latencies]:
    """What `dump` has made; nothing of what another version has made with other bounds."""
    found = [Latencies(*each) for each in json.loads(text)]
    return [each for each in found if len(each.up_to) == len(BOUNDS_S)]


def _up_to(cells: Cells) -> list[int]:
    """A cell counts by its middle, which errs by less than a hundredth."""
    middles = [((begin + end) / 2e9, count) for begin, end, count in cells.cells_in_use()]
    return [sum(count for middle, count in middles if middle <= bound) for bound in BOUNDS_S]
