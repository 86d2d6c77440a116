"""A node that is short of memory or processors runs fewer attempts until that passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pysched.engine import pressure
from pysched.engine.pressure import CPU, MEMORY, Balance, Reading, Rule

CALM = Reading(0.0, 0.0, 0.5)
RULE = Rule(workers=16, processors=2, memory=20.0, cpu=90.0)


class Machine:
    """Readings and a clock, and what a Balance makes of them."""

    def __init__(self, rule: Rule = RULE, running: int = 16) -> None:
        self.reading = CALM
        self.running = running
        self.now = 0.0
        self.told: list[int] = []
        self.balance = Balance(
            rule, read=lambda: self.reading, running=lambda: self.running, allow=self.allow, clock=lambda: self.now
        )

    def allow(self, workers: int) -> None:
        self.told.append(workers)
        self.running = min(self.running, workers)

    def pass_steps(self, count: int, reading: Reading) -> list[int]:
        """What was allowed meanwhile."""
        self.reading, self.told = reading, []
        for _ in range(count):
            self.now += pressure.STEP_S
            self.balance.look()
        return self.told


def test_memory_pressure_lowers_it_to_one_and_calm_brings_all_back() -> None:
    machine = Machine()
    assert machine.pass_steps(9, Reading(50.0, 0.0, 1.0)) == [12, 9, 6, 4, 3, 2, 1]
    assert machine.balance.by == MEMORY
    assert machine.pass_steps(3, Reading(15.0, 0.0, 1.0)) == []
    assert machine.pass_steps(12, CALM) == [2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16]
    assert machine.balance.by is None


def test_what_is_lowered_is_what_runs_and_not_what_might() -> None:
    assert Machine(running=4).pass_steps(1, Reading(20.0, None, 0.0)) == [3]


def test_processors_count_as_short_only_with_a_crowd_and_keep_some_attempts_each() -> None:
    machine = Machine()
    assert machine.pass_steps(3, Reading(0.0, 100.0, 7.0)) == []
    assert machine.pass_steps(5, Reading(0.0, 95.0, 8.0)) == [12, 9, 8]
    assert machine.balance.by == CPU
    assert machine.pass_steps(1, Reading(0.0, 95.0, 3.0)) == [10]
    assert Machine(Rule(workers=8, processors=2, memory=20.0, cpu=90.0)).pass_steps(3, Reading(0.0, 99.0, 50.0)) == []


def test_nothing_changes_within_a_step() -> None:
    machine = Machine()
    machine.pass_steps(1, Reading(50.0, 0.0, 1.0))
    machine.now += pressure.STEP_S / 2
    machine.balance.look()
    assert machine.told == [12]


@pytest.mark.parametrize("reading", [Reading(None, None, 90.0), Reading(99.0, 99.0, 90.0)])
def test_what_the_kernel_does_not_say_or_nobody_asked_for_changes_nothing(reading: Reading) -> None:
    rule = RULE if reading.memory is None else Rule(workers=16, processors=2, memory=0.0, cpu=0.0)
    assert Machine(rule).pass_steps(3, reading) == []


def test_an_idle_node_reads_nothing() -> None:
    machine = Machine(running=0)
    assert machine.pass_steps(2, Reading(99.0, 99.0, 90.0)) == []


@pytest.mark.parametrize("names", [("memory", "cpu"), ("memory.pressure", "cpu.pressure")])
def test_read_as_the_kernel_writes_it(tmp_path: Path, names: tuple[str, str]) -> None:
    text = "some avg10={} avg60=0.00 avg300=0.00 total=7\nfull avg10=99.00 avg60=0.00 avg300=0.00 total=3\n"
    (tmp_path / names[0]).write_text(text.format("12.50"))
    read = pressure.reader(tmp_path)
    assert (read().memory, read().cpu) == (12.5, None)
    (tmp_path / names[1]).write_text(text.format("0.00"))
    reading = read()
    assert (reading.memory, reading.cpu) == (12.5, 0.0)
    assert reading.runnable > 0
    (tmp_path / names[0]).write_text("nonsense")
    assert read().memory is None
