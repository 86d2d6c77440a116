"""A few seeds of the driver in every run of the tests; `make chaos` does many more."""

from __future__ import annotations

import random
import sys

import pytest

from tests.chaos import episode
from tests.chaos.checker import Violation
from tests.chaos.episode import Report

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_and_nothing_recorded_twice(seed: int) -> None:
    report = episode.run(seed, kills=5, tasks=50)
    replay = f"replay: python -m tests.chaos --seed {seed} --kills 5 --tasks 50"
    assert not report.violations, "\n".join(map(str, [report, *report.violations, replay]))
    assert report.kills > 0
    assert report.acknowledged > 0


def test_a_seed_is_a_schedule() -> None:
    assert episode.plan(random.Random(7), 20) == episode.plan(random.Random(7), 20)
    assert episode.plan(random.Random(7), 20) != episode.plan(random.Random(8), 20)


def test_a_run_without_an_effective_fault_fails() -> None:
    for report, rules in ((Report(1), ["no fault"]), (Report(1, kills=1), []), (Report(1, others=1), [])):
        episode.require_faults(report)
        assert [violation.rule for violation in report.violations] == rules


def test_a_violation_is_printed_with_its_seed_and_its_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.chaos import __main__ as program

    def go_wrong(seed: int, kills: int, *, tasks: int | None, pause: float) -> Report:
        return Report(seed, violations=[Violation("lost", "t1", "is gone")], kills=kills)

    monkeypatch.setattr(episode, "run", go_wrong)
    monkeypatch.setattr(sys, "argv", ["chaos", "--seed", "17", "--kills", "3", "--pause", "0.5"])
    assert program.main() == 1
    out = capsys.readouterr().out
    assert "VIOLATION lost: t1: is gone" in out
    assert "replay: python -m tests.chaos --seed 17 --kills 3 --pause 0.5" in out
