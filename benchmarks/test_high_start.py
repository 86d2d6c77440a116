"""Does HIGH wait for LOW?  How soon HIGH starts when a worker is free, with a million LOW queued and with none."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from benchmarks.race import Ratio
from pysched._core import CAUSE_CANCEL, EXITED, STARTED, Core, Event, Launch

LOW = 1_000_000
BATCH = 50_000
PROBES = 200  # in a round
ROUNDS = 7


class Gate:
    """A core whose only worker a sleeping LOW attempt holds until a HIGH one waits for it."""

    def __init__(self, backlog: int) -> None:
        self.core = Core(lanes=2, workers=1)
        self._handles = itertools.count(1)
        self._backlog = backlog > 0
        self._events: Iterator[Event] = iter(())
        for start in range(0, backlog, BATCH):
            self.core.submit([self._low() for _ in range(start, min(start + BATCH, backlog))])

    def _launch(self, priority: int, *argv: bytes) -> Launch:
        handle = next(self._handles)
        return Launch(
            handle=handle,
            priority=priority,
            rank=0,
            sequence=handle,
            argv=argv,
            candidates=argv[:1],
            env=[b"PATH=/usr/bin:/bin"],
            cwd=b"/",
            stdout=b"/dev/null",
            stderr=b"/dev/null",
        )

    def _low(self) -> Launch:
        return self._launch(2, b"/bin/sleep", b"600")

    def start_latencies_ms(self, probes: int) -> list[float]:
        """From the end of the attempt that held the worker to the start of the HIGH one, `probes` times."""
        latencies = []
        for _ in range(probes):
            if not self._backlog:
                self.core.submit([self._low()])
            sleeper = self._next(STARTED).handle
            high = self._launch(0, b"/bin/true")
            self.core.submit([high])
            self.core.kill(sleeper, 0.0, CAUSE_CANCEL)
            ended, started, done = self._next(EXITED), self._next(STARTED), self._next(EXITED)
            assert (ended.handle, started.handle, done.handle) == (sleeper, high.handle, high.handle)
            assert done.status == 0
            latencies.append((started.started_ns - ended.ended_ns) / 1e6)
        return latencies

    def _next(self, kind: int) -> Event:
        event = next(self._events, None)
        while event is None:
            self._events = iter(self.core.poll(None))
            event = next(self._events, None)
        assert event.kind == kind
        return event

    def close(self) -> None:
        """End what sleeps, then the core."""
        self.core.withdraw_all()
        if self.core.running:
            self.core.kill(self._next(STARTED).handle, 0.0, CAUSE_CANCEL)
        while self.core.running:
            self.core.poll(1.0)
        self.core.close()


@pytest.fixture
def gates() -> Iterator[tuple[Gate, Gate]]:
    pair = Gate(0), Gate(LOW)
    yield pair
    for gate in pair:
        gate.close()


def test_high_starts_as_soon_with_a_million_low_queued(gates: tuple[Gate, Gate], say: Callable[[str], None]) -> None:
    idle, full = gates
    rounds = []
    for _ in range(ROUNDS):
        laps = [sorted(gate.start_latencies_ms(PROBES))[int(PROBES * 0.99)] for gate in (idle, full)]
        rounds.append(laps)
    ratio = Ratio.of([lap[1] / lap[0] for lap in rounds])
    typical = [sorted(lap[side] for lap in rounds)[ROUNDS // 2] for side in (0, 1)]
    say(f"HIGH start p99, {LOW:,} LOW queued against none: {ratio}   ({typical[1]:.3f} ms, {typical[0]:.3f} ms)")
    assert full.core.depths()[2] > LOW * 0.99
    assert ratio.median <= 2.0
