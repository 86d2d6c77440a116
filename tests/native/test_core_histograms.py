"""What the lanes measure."""

from __future__ import annotations

from collections.abc import Callable

from pysched._core import EXITED, STARTED

from .conftest import Run

Start = Callable[..., Run]


def test_wait_and_run_times_of_each_priority_are_those_of_the_events(start: Start) -> None:
    run = start(lanes=2, workers=4)
    launches = [run.shell(f"exec sleep 0.0{i % 3}", priority=i % 3, waited_s=i * 10.0) for i in range(60)]
    before = run.core.histograms()
    assert {histogram.count for histogram in before.values()} == {0}
    assert repr(before["wait", 0]) == "<Histogram of 0>"
    handles = run.submit(*launches)
    run.ends(handles)
    after = run.core.histograms()
    assert set(after) == {(kind, priority) for kind in ("wait", "run") for priority in range(3)}
    for priority in range(3):
        mine = {launch.handle for launch in launches if launch.priority == priority}
        waits = sorted(event.wait_ns for event in run.events if event.kind == STARTED and event.handle in mine)
        runs = sorted(event.run_ns for event in run.events if event.kind == EXITED and event.handle in mine)
        for kind, exact in (("wait", waits), ("run", runs)):
            histogram = after[kind, priority]  # type: ignore[index]
            assert histogram.count == 20
            for q in (0.05, 0.5, 0.95, 1):
                told = histogram.quantile(q)
                assert told is not None
                assert abs(told - exact[round(q * 20) - 1]) <= exact[round(q * 20) - 1] / 128


def test_two_readings_give_what_came_between_them(start: Start) -> None:
    run = start(lanes=2, workers=4)
    run.ends(run.submit(*(run.launch("/bin/true") for _ in range(10))))
    earlier = run.core.histograms()
    run.ends(run.submit(*(run.launch("/bin/true", priority=0) for _ in range(7))))
    later = run.core.histograms()
    counts = {key: later[key].since(earlier[key]).count for key in later}
    assert counts == {key: 7 if key[1] == 0 else 0 for key in later}


def test_failed_spawns_and_withdrawn_attempts_are_not_measured(start: Start) -> None:
    run = start(lanes=1, workers=1)
    run.ends(run.submit(run.launch("/nowhere")))
    assert {histogram.count for histogram in run.core.histograms().values()} == {0}
