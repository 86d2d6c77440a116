"""Overdue attempts in the lanes; the rule itself is tried in tests/unit/test_ageing.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pysched._core import CAUSE_CANCEL, STARTED, WITHDRAWN

from .conftest import Gate, Run

Start = Callable[..., Run]


def test_the_overdue_start_out_of_their_share_in_front_of_high(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1, ageing_s=1e-6)
    (first,) = run.submit(run.shell(gate.hold, priority=0))
    run.started(first)
    high = [run.launch("/bin/true", priority=0, rank=9) for _ in range(8)]
    low = [run.launch("/bin/true", priority=2, waited_s=100.0 + i) for i in range(2)]
    handles = run.submit(*high, *low)
    gate.open()
    run.ends(handles)
    order = [event.handle for event in run.events if event.kind == STARTED][1:]
    h, late = [launch.handle for launch in high], [launch.handle for launch in low]
    assert order == [late[0], *h[:3], late[1], *h[3:]]
    waits = {event.handle: event.wait_ns for event in run.events if event.kind == STARTED}
    assert 100e9 <= waits[late[0]] < 101e9 <= waits[late[1]] < 200e9
    assert waits[h[0]] < 100e9


def test_without_ageing_an_earlier_wait_changes_no_order(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1)
    (first,) = run.submit(run.shell(gate.hold))
    run.started(first)
    handles = run.submit(run.launch("/bin/true", priority=2, waited_s=1e6), run.launch("/bin/true", priority=0))
    gate.open()
    run.ends(handles)
    assert [event.handle for event in run.events if event.kind == STARTED][1:] == handles[::-1]


def test_overdue_ones_that_are_killed_are_swept_and_the_others_start(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1, ageing_s=1e-6)
    (first,) = run.submit(run.shell(gate.hold, priority=0))
    run.started(first)
    waiting = [run.shell(gate.hold, priority=1 + i % 2, waited_s=100.0) for i in range(401)]
    run.submit(*waiting)
    run.core.set_workers(2)  # the next pop lays all that wait aside, and takes the first of them
    run.started(waiting[0].handle)
    kept, killed = waiting[::10], [launch for i, launch in enumerate(waiting) if i % 10]
    for launch in killed:
        assert run.core.kill(launch.handle, 0, CAUSE_CANCEL)
    assert {event.kind for event in run.ends([launch.handle for launch in killed])} == {WITHDRAWN}
    assert sum(run.core.depths()) == len(kept) - 1
    gate.open()
    run.ends([launch.handle for launch in kept])
    order = [event.handle for event in run.events if event.kind == STARTED][1:]
    assert sorted(order) == [launch.handle for launch in kept]
    assert (run.core.running, run.core.depths()) == (0, (0, 0, 0))


@pytest.mark.parametrize("waited_s", [-1.0, float("nan")])
def test_a_wait_that_is_none_is_refused(start: Start, waited_s: float) -> None:
    with pytest.raises(ValueError, match="waited_s"):
        start().launch("/bin/true", waited_s=waited_s)
