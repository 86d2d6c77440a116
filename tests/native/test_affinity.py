"""Attempts that ask for processors have some of their own, as far as there are some."""

from __future__ import annotations

import os
from collections.abc import Callable

from .conftest import Gate, Run, wait_until

Start = Callable[..., Run]

OURS = sorted(os.sched_getaffinity(0))


def held(run: Run, gate: Gate, **given: object) -> int:
    (handle,) = run.submit(run.shell(f"grep Cpus_allowed_list: /proc/self/status; {gate.hold}", **given))
    return handle


def processors(run: Run, handle: int) -> list[int]:
    """Of an attempt, once it has said so."""
    run.started(handle)
    wait_until(lambda: run.output(handle).endswith("\n"), "what it says")
    found: list[int] = []
    for part in run.output(handle).split()[1].split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def test_each_has_its_own_and_who_comes_when_none_is_left_has_all(start: Start, gate: Gate) -> None:
    run = start(workers=len(OURS) + 2, affinity=True)
    whole = [held(run, gate, cpus=1000) for _ in OURS]
    assert sorted(processors(run, handle) for handle in whole) == [[number] for number in OURS]
    late, asks_for_none = held(run, gate, cpus=1000), held(run, gate)
    assert processors(run, late) == processors(run, asks_for_none) == OURS
    gate.open()
    for handle in [*whole, late, asks_for_none]:
        run.end(handle)
    assert len(processors(run, held(run, gate, cpus=1000))) == 1


def test_parts_of_one_share_one(start: Start, gate: Gate) -> None:
    run = start(workers=2, affinity=True)
    parts = [held(run, gate, cpus=500), held(run, gate, cpus=500)]
    assert processors(run, parts[0]) == processors(run, parts[1])
    assert len(processors(run, parts[0])) == 1
    gate.open()


def test_nobody_is_pinned_unless_it_is_wanted(start: Start, gate: Gate) -> None:
    run = start(cpus=1000)
    handle = held(run, gate, cpus=1000)
    assert processors(run, handle) == OURS
    gate.open()
