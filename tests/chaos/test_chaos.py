"""A few seeds of the driver in every run of the tests; `make chaos` does many more."""

from __future__ import annotations

import random
import sys

import pytest

from tests.chaos import episode, faults
from tests.chaos.checker import Violation
from tests.chaos.episode import Report

pytestmark = pytest.mark.timeout(400)

_SEEDS = (1, 2)


@pytest.mark.parametrize("seed", _SEEDS)
def test_nothing_is_lost_and_nothing_recorded_twice(seed: int) -> None:
    report = episode.run(seed, kills=5, tasks=50)
    assert report.violations == [], f"{report}\nreplay: python -m tests.chaos --seed {seed} --kills 5 --tasks 50"
    assert report.kills > 0
    assert report.acknowledged > 0


def test_a_seed_is_a_schedule() -> None:
    assert episode.plan(random.Random(7), 20) == episode.plan(random.Random(7), 20)
    assert episode.plan(random.Random(7), 20) != episode.plan(random.Random(8), 20)


def test_a_run_without_an_effective_fault_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(*_: object) -> faults.Effect:
        return faults.Effect()

    monkeypatch.setattr(faults, "KILLS", {miss: 1})
    monkeypatch.setattr(faults, "OTHERS", {miss: 1})
    monkeypatch.setattr(episode, "_TRIES", 1)
    assert [violation.rule for violation in episode.run(1, kills=1, tasks=2).violations] == ["no fault"]


def test_a_violation_is_printed_with_its_seed_and_its_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.chaos import __main__ as program

    def go_wrong(seed: int, kills: int, *, tasks: int | None) -> Report:
        return Report(seed, violations=[Violation("lost", "t1", "is gone")], kills=kills)

    monkeypatch.setattr(episode, "run", go_wrong)
    monkeypatch.setattr(sys, "argv", ["chaos", "--seed", "17", "--kills", "3"])
    assert program.main() == 1
    out = capsys.readouterr().out
    assert "VIOLATION lost: t1: is gone" in out
    assert "replay: python -m tests.chaos --seed 17 --kills 3" in out
