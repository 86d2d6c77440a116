"""How many attempts a node runs while its machine is short of memory or processors.

The kernel says what share of the last ten seconds somebody had to wait (pressure stall information)::

             pressed: three quarters of what runs, at least `floor`
           ┌──────────┐
    all ───┴─► fewer ─┴──── calm: a quarter more ───► all
                 ▲───────────────┘

*pressed* is a share at or over the limit, *calm* one below half of it; between the two nothing changes, nor within
`STEP_S` of the last change, since the kernel's averages come after.  What runs is let run: only starts wait.

A processor has somebody waiting as soon as there is one task more than processors, and that is how it should be used.
So processors count as short only while, beside that, `CROWD` tasks a processor can run, and never below `CPU_FLOOR`
attempts a processor: sleeping jobs by the thousand are no crowd.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pysched import machine

STEP_S = 3.0
CROWD = 8.0
CPU_FLOOR = 4
MEMORY, CPU = "memory", "cpu"

_PROC = Path("/proc/pressure")
_LOADAVG = Path("/proc/loadavg")


@dataclass(frozen=True, slots=True)
class Reading:
    """Shares of the last ten seconds, percent, in which some task waited; None: the kernel does not say."""

    memory: float | None
    cpu: float | None
    runnable: float  # tasks a processor that run or could, on the whole machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`memory` and `cpu`: percent from which on the node is pressed; 0: never."""

    workers: int
    processors: int
    memory: float
    cpu: float

    def pressed(self, reading: Reading) -> str | None:
        """By what."""
        if self.memory and reading.memory is not None and reading.memory >= self.memory:
            return MEMORY
        if self.cpu and reading.cpu is not None and reading.cpu >= self.cpu and reading.runnable >= CROWD:
            return CPU
        return None

    def calm(self, reading: Reading) -> bool:
        memory, cpu = reading.memory or 0.0, reading.cpu or 0.0
        cpu_calm = cpu < self.cpu / 2 or reading.runnable < CROWD / 2
        return (not self.memory or memory < self.memory / 2) and (not self.cpu or cpu_calm)

    def floor(self, by: str) -> int:
        return 1 if by == MEMORY else min(self.workers, CPU_FLOOR * self.processors)

    def fewer(self, allowed: int, running: int, by: str) -> int:
        return min(allowed, max(self.floor(by), min(allowed, running) * 3 // 4))

    def more(self, allowed: int) -> int:
        return min(self.workers, allowed + max(1, allowed // 4))


class Balance:
    """`look()`, about once a second, by one thread; `allowed` and `by` may be read by others.

    `running()`: attempts; `allow(n)`: let no more than so many run.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        read: Callable[[], Reading],
        running: Callable[[], int],
        allow: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._read = read
        self._running = running
        self._allow = allow
        self._clock = clock
        self._changed_s = -STEP_S
        self._active = bool(rule.memory or rule.cpu)
        self.allowed = rule.workers
        self.by: str | None = None  # what is short, or was when `allowed` was lowered last
        self._log = structlog.get_logger("pressure")

    def look(self) -> None:
        running = self._running()
        if not self._active or (self.by is None and not running):
            return
        now = self._clock()
        if now - self._changed_s < STEP_S:
            return
        reading = self._read()
        by = self._rule.pressed(reading)
        if by is not None:
            self._change(self._rule.fewer(self.allowed, running, by), by, reading, now)
        elif self.by is not None and self._rule.calm(reading):
            allowed = self._rule.more(self.allowed)
            self._change(allowed, None if allowed == self._rule.workers else self.by, reading, now)

    def _change(self, allowed: int, by: str | None, reading: Reading, now: float) -> None:
        if allowed == self.allowed:
            return
        lowered = allowed < self.allowed
        self.allowed, self.by, self._changed_s = allowed, by, now
        self._allow(allowed)
        if lowered:
            share = reading.memory if by == MEMORY else reading.cpu
            self._log.warning("running fewer attempts", short_of=by, waiting_pct=share, allowed=allowed)
        elif by is None:
            self._log.info("running as many attempts as before", allowed=allowed)


def reader(given: Path | None) -> Callable[[], Reading]:
    """Reads the pressure of a folder: /proc/pressure, or that of a cgroup of v2; by default our own cgroup's if it has
    any, else the machine's."""
    own = machine.unified_cgroup()
    folder = given or (own if own is not None and (own / "memory.pressure").exists() else _PROC)
    processors = os.cpu_count() or 1

    def read() -> Reading:
        return Reading(_share(folder, "memory"), _share(folder, "cpu"), _runnable() / processors)

    return read


def _share(folder: Path, name: str) -> float | None:
    for file in (folder / name, folder / f"{name}.pressure"):
        try:
            words = file.read_text().split()
        except OSError:  # no such file, or a kernel that keeps none
            continue
        if len(words) > 1 and words[0] == "some" and words[1].startswith("avg10="):
            return float(words[1].removeprefix("avg10="))
    return None


def _runnable() -> int:
    try:
        return int(_LOADAVG.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 0
