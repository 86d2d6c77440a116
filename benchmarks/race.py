"""Contenders that run in turns, so that whatever else the machine does meanwhile meets all of them alike.

Each round runs every contender once, in an order that turns from round to round.  What counts is the ratio of two
contenders within a round; a result is the median of the rounds' ratios, with the smallest and the largest.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# In memory where that is to be had.  On ext4 the creation of a file costs between 10 and 100 µs, by what was lately
# deleted near it (`recently_deleted` in a profile): a race there is one of folders, not of programs.
FOLDERS = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True, slots=True)
class Lap:
    """One run: wall-clock seconds, and the processor's seconds of all its processes."""

    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast one contender is as another: the median of the rounds, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f}× ({self.low:.2f} … {self.high:.2f})"


class Race:
    """The laps of all contenders, by name."""

    def __init__(self, contenders: Mapping[str, Callable[[], Lap]], *, rounds: int) -> None:
        names = list(contenders)
        self.laps: dict[str, list[Lap]] = {name: [] for name in names}
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                self.laps[name].append(contenders[name]())

    def seconds(self, name: str) -> float:
        return statistics.median(lap.seconds for lap in self.laps[name])

    def fastest(self, *names: str) -> str:
        return min(names, key=self.seconds)

    def speed(self, name: str, than: str) -> Ratio:
        """How many times as fast `name` is as `than`, by the clock."""
        return Ratio.of([b.seconds / a.seconds for a, b in zip(self.laps[name], self.laps[than], strict=True)])

    def thrift(self, name: str, than: str) -> Ratio:
        """The same by processor time, which a busy machine disturbs less."""
        return Ratio.of([b.cpu_s / a.cpu_s for a, b in zip(self.laps[name], self.laps[than], strict=True)])

    def table(self, name: str, count: int) -> str:
        """All contenders, `name` against each, as text; `count` things were done in a lap."""
        head = f"{'':<24}{'per second':>12}{'µs of CPU each':>16}"
        lines = [f"{head}   {name} is … times as fast, by the clock and by CPU"]
        for other, laps in self.laps.items():
            rate = count / self.seconds(other)
            cpu_us = statistics.median(lap.cpu_s for lap in laps) / count * 1e6
            against = "" if other == name else f"   {self.speed(name, other)}   {self.thrift(name, other)}"
            lines.append(f"{other:<24}{rate:>12.0f}{cpu_us:>16.0f}{against}")
        return "\n".join(lines)


def program(*command: str | int) -> Callable[[], Lap]:
    """A contender that prints its own seconds and processor seconds; `{folder}` is a new empty one each time."""

    def run() -> Lap:
        with tempfile.TemporaryDirectory(prefix="pysched-bench-", dir=FOLDERS) as folder:
            words = [str(word).replace("{folder}", folder) for word in command]
            out = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, cpu_s = map(float, out.splitlines()[-1].split())  # tools may talk before
        return Lap(seconds, cpu_s)

    return run
