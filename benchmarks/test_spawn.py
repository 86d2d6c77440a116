"""Does anything stand between the core and the kernel?  The same children by the core and by a loop in C."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.baseline import Baseline
from benchmarks.race import Race, program
from pysched import delegation

CORE_LOOP = (sys.executable, str(Path(__file__).with_name("core_loop.py")))
WORKERS = 8
COUNT = 600
NOOPS = 3_000
ROUNDS = 9


def test_true_as_fast_as_the_best_posix_spawn_loop(baseline: Baseline, say: Callable[[str], None]) -> None:
    loop = [f"C posix_spawn, {threads} thread" for threads in (1, 2)]
    race = Race(
        {
            "core": program(*CORE_LOOP, WORKERS, COUNT, "{folder}", "/bin/true"),
            loop[0]: program(baseline.spawn_loop, "spawn", 1, WORKERS, COUNT, "{folder}", "/bin/true"),
            loop[1]: program(baseline.spawn_loop, "spawn", 2, WORKERS, COUNT, "{folder}", "/bin/true"),
        },
        rounds=ROUNDS,
    )
    say(race.table("core", COUNT))
    assert race.speed("core", race.fastest(*loop)).median >= 1.0


def test_static_noop_as_fast_as_a_clone_loop(baseline: Baseline, say: Callable[[str], None]) -> None:
    """Against the loop that can hear of something else than ends; the table also has the one that sits in wait4."""
    bare, watching = ([f"C {method}, {threads} thread" for threads in (1, 2)] for method in ("clone", "watch"))
    loops = {
        f"C {method}, {threads} thread": program(
            baseline.spawn_loop, method, threads, WORKERS, NOOPS, "{folder}", baseline.noop
        )
        for method in ("clone", "watch")
        for threads in (1, 2)
    }
    race = Race(
        {"core": program(*CORE_LOOP, WORKERS, NOOPS, "{folder}", baseline.noop), **loops},
        rounds=ROUNDS,
    )
    say(race.table("core", NOOPS))
    say(f"against the fastest in wait4: {race.speed('core', race.fastest(*bare))}")
    assert race.speed("core", race.fastest(*watching)).median >= 0.95


def test_the_table_of_attempts_costs_next_to_nothing(say: Callable[[str], None]) -> None:
    race = Race(
        {
            "with table": program(*CORE_LOOP, "--table", WORKERS, COUNT, "{folder}", "/bin/true"),
            "without": program(*CORE_LOOP, WORKERS, COUNT, "{folder}", "/bin/true"),
        },
        rounds=ROUNDS,
    )
    say(race.table("with table", COUNT))
    assert race.speed("with table", "without").median >= 0.97


@pytest.mark.parametrize(("what", "share"), [("/bin/true", 0.9), ("noop", 0.85)])
def test_a_control_group_for_each_child_costs_little(
    baseline: Baseline, say: Callable[[str], None], what: str, share: float
) -> None:
    try:
        delegation.check()
    except delegation.NotDelegated as error:
        pytest.skip(str(error))
    child = baseline.noop if what == "noop" else what
    race = Race(
        {
            "with leaves": program(*CORE_LOOP, "--leaves", WORKERS, NOOPS, "{folder}", child),
            "without": program(*CORE_LOOP, WORKERS, NOOPS, "{folder}", child),
        },
        rounds=ROUNDS,
    )
    say(race.table("with leaves", NOOPS))
    assert race.thrift("with leaves", "without").median >= share


def test_a_large_parent_spawns_as_fast_as_a_small_one(say: Callable[[str], None]) -> None:
    race = Race(
        {
            "1 GiB resident": program(*CORE_LOOP, "--resident-mib", 1024, WORKERS, COUNT, "{folder}", "/bin/true"),
            "small": program(*CORE_LOOP, WORKERS, COUNT, "{folder}", "/bin/true"),
        },
        rounds=ROUNDS,
    )
    say(race.table("1 GiB resident", COUNT))
    assert race.speed("1 GiB resident", "small").median >= 0.95
