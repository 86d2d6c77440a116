"""Who may start when attempts ask for processors, memory or GPUs: never too many, none starved."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched._core import CAUSE_CANCEL, CAUSE_SHUTDOWN, EXITED, STARTED, WITHDRAWN, AttemptTable, Core, Event

from .conftest import Gate, Run, wait_until

Start = Callable[..., Run]


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Further gates, one for each call."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate{len(made)}"))
        return made[-1]

    yield make
    for gate in made:
        gate.close()


def begun(run: Run) -> set[int]:
    return {event.handle for event in run.events if event.kind == STARTED}


def settle(run: Run) -> None:
    """Until everything that may start by now has: an attempt that asks for nothing starts after all that came before
    it."""
    run.end(run.submit(run.launch("/bin/true", priority=2, rank=-(2**31)))[0])


def concurrency(events: list[Event], amounts: dict[int, int]) -> int:
    """The most that was held at a time; an end may be told before the start that it made room for, never after."""
    held = most = 0
    for event in events:
        held += amounts[event.handle] * {STARTED: 1, EXITED: -1}.get(event.kind, 0)
        most = max(most, held)
    return most


@pytest.mark.parametrize("lanes", [1, 3])
def test_what_runs_at_once_never_asks_for_more_than_there_is_and_all_of_it_runs(start: Start, lanes: int) -> None:
    run = start(lanes=lanes, workers=16, cpus=4000, memory=1000)
    draw = random.Random(lanes)
    launches = [
        run.launch(
            "/bin/true",
            priority=draw.randrange(3),
            cpus=draw.choice([0, 500, 1000, 3000, 4000]),
            memory=draw.choice([0, 1, 400, 1000]),
        )
        for _ in range(300)
    ]
    run.submit(*launches)
    assert all(event.kind == EXITED for event in run.ends([launch.handle for launch in launches]))
    # Started is told in the order of the lanes' rounds, an end before its share is given back.
    if lanes == 1:
        assert concurrency(run.events, {launch.handle: launch.cpus for launch in launches}) <= 4000
        assert concurrency(run.events, {launch.handle: launch.memory for launch in launches}) <= 1000
    assert run.core.resources() == (4000, 1000, 0, 0)


def test_held_processors_keep_others_waiting_but_not_those_that_ask_for_none(start: Start, gate: Gate) -> None:
    run = start(workers=8, cpus=2000)
    holders = run.submit(*(run.shell(gate.hold, cpus=1000) for _ in range(2)))
    for handle in holders:
        run.started(handle)
    (third,) = run.submit(run.launch("/bin/true", cpus=1))
    settle(run)
    assert third not in begun(run)
    assert run.core.depths() == (0, 1, 0)
    assert run.core.running == 2
    gate.open()
    assert run.end(third).status == 0
    run.ends(holders)


def test_a_large_one_is_not_starved_by_small_ones_that_fill_the_gaps(start: Start, gates: Callable[[], Gate]) -> None:
    first, rest = gates(), gates()
    run = start(workers=16, cpus=4000)
    (small,) = run.submit(run.shell(first.hold, cpus=2000))
    run.started(small)
    (large,) = run.submit(run.launch("/bin/true", cpus=3000))
    fillers = run.submit(*(run.shell(rest.hold, cpus=1000) for _ in range(3)))
    # One of them fits beside the large one; a second one would keep that from starting when `small` ends.
    run.started(fillers[0])
    settle(run)
    assert begun(run) & {large, *fillers} == {fillers[0]}
    first.open()
    assert run.end(large).status == 0
    order = [event.handle for event in run.events if event.kind == STARTED and event.handle in {large, *fillers}]
    assert order[:2] == [fillers[0], large]
    rest.open()
    run.ends([small, *fillers])


def test_one_of_a_higher_class_comes_before_the_one_that_is_reserved_for(
    start: Start, gates: Callable[[], Gate]
) -> None:
    first, rest = gates(), gates()
    run = start(workers=16, cpus=4000)
    (small,) = run.submit(run.shell(first.hold, cpus=2000))
    run.started(small)
    (large,) = run.submit(run.launch("/bin/true", cpus=4000, priority=1))
    (urgent,) = run.submit(run.shell(rest.hold, cpus=2000, priority=0))
    run.started(urgent)
    assert large not in begun(run)
    first.open()
    rest.open()
    run.ends([small, urgent, large])


def test_an_overdue_one_comes_before_a_higher_class(start: Start, gate: Gate) -> None:
    run = start(workers=16, cpus=2000, ageing_s=100.0)
    (holder,) = run.submit(run.shell(gate.hold, cpus=1000))
    run.started(holder)
    (low,) = run.submit(run.launch("/bin/true", cpus=2000, priority=2, waited_s=1000.0))
    settle(run)
    (high,) = run.submit(run.launch("/bin/true", cpus=1000, priority=0))
    settle(run)
    assert not begun(run) & {low, high}
    gate.open()
    run.ends([holder, low, high])
    order = [event.handle for event in run.events if event.kind == STARTED and event.handle in {low, high}]
    assert order == [low, high]


def test_one_that_waits_can_be_cancelled_and_frees_who_waited_behind_it(start: Start, gate: Gate) -> None:
    run = start(workers=16, cpus=4000)
    (holder,) = run.submit(run.shell(gate.hold, cpus=1000))
    run.started(holder)
    large, behind = run.submit(run.launch("/bin/true", cpus=4000), run.launch("/bin/true", cpus=3000))
    settle(run)
    assert behind not in begun(run)
    assert run.core.kill(large, 0.0, CAUSE_CANCEL)
    assert (run.end(large).kind, run.end(large).cause) == (WITHDRAWN, CAUSE_CANCEL)
    assert run.end(behind).status == 0
    assert run.core.resources() == (3000, 2**60, 0, 0)
    gate.open()
    run.end(holder)


def test_those_that_wait_start_in_their_order_whatever_they_ask_for(start: Start, gate: Gate) -> None:
    """Each asks for more than half of the processors, so one runs at a time and none can pass another."""
    run = start(workers=16, cpus=1000, ageing_s=1000.0)
    (holder,) = run.submit(run.shell(gate.hold, cpus=1000, priority=0, rank=2**31 - 1))
    run.started(holder)
    draw = random.Random(7)
    launches = [
        run.launch(
            "/bin/true", priority=draw.randrange(3), rank=draw.choice([0, 0, 0, 5, -5]),
            cpus=draw.choice([501, 700, 1000]), waited_s=draw.choice([0.0] * 9 + [5000.0 + number]),
        )
        for number in range(200)
    ]  # fmt: skip
    run.submit(*launches)
    settle(run)
    cancelled = {launch.handle for launch in launches[::7]}
    assert all(run.core.kill(handle, 0.0, CAUSE_CANCEL) for handle in cancelled)
    left = [launch for launch in launches if launch.handle not in cancelled]
    assert run.core.depths() == tuple(sum(launch.priority == priority for launch in left) for priority in range(3))
    # What was overdue when it came started as such from the lanes' buckets, before it was parked.
    overdue = [launch for launch in left if launch.priority and launch.waited_s >= 1000.0 * launch.priority]
    overdue.sort(key=lambda launch: -(launch.waited_s - 1000.0 * launch.priority))
    rest = sorted(
        (launch for launch in left if launch not in overdue),
        key=lambda launch: (launch.priority, -launch.rank, launch.sequence),
    )
    gate.open()
    run.ends([launch.handle for launch in left])
    order = [event.handle for event in run.events if event.kind == STARTED and event.handle != holder]
    own = {launch.handle for launch in left}
    assert [handle for handle in order if handle in own] == [launch.handle for launch in [*overdue, *rest]]


def test_withdrawing_all_takes_those_that_wait_too(start: Start, gate: Gate) -> None:
    run = start(workers=16, cpus=1000)
    (holder,) = run.submit(run.shell(gate.hold, cpus=1000))
    run.started(holder)
    waiting = run.submit(*(run.launch("/bin/true", cpus=1000) for _ in range(5)))
    settle(run)
    assert run.core.resources()[3] == 5
    assert run.core.withdraw_all() == 5
    assert {(event.kind, event.cause) for event in run.ends(waiting)} == {(WITHDRAWN, CAUSE_SHUTDOWN)}
    assert run.core.resources() == (0, 2**60, 0, 0)
    gate.open()
    run.end(holder)


def test_what_could_not_be_started_gives_its_share_back(start: Start) -> None:
    run = start(cpus=1000, memory=10)
    handles = run.submit(*(run.launch("/no/such/program", cpus=1000, memory=10) for _ in range(20)))
    run.ends(handles)
    assert run.core.resources() == (1000, 10, 0, 0)


def test_more_than_a_core_has_is_refused(start: Start) -> None:
    run = start(cpus=1000, memory=10, gpus=[b"0"])
    for asked in ({"cpus": 1001}, {"memory": 11}, {"gpus": 2000}):
        with pytest.raises(ValueError, match=next(iter(asked))):
            run.submit(run.launch("/bin/true", **asked))
    assert run.core.resources() == (1000, 10, 1000, 0)
    with pytest.raises(ValueError, match="gpus: 1500 is no whole number"):
        run.launch("/bin/true", gpus=1500)
    with pytest.raises(ValueError, match="gpus"):
        Core(lanes=1, workers=1, gpus=[b"a,b"])


def test_a_core_that_waits_can_be_closed(start: Start, gate: Gate) -> None:
    run = start()  # a maker of launches
    core = Core(lanes=1, workers=8, cpus=1000)
    core.submit([run.shell(gate.hold, cpus=1000), *(run.launch("/bin/true", cpus=1000) for _ in range(3))])
    wait_until(lambda: core.resources()[3] == 3 and sum(core.depths()) == 3, "the first one's start")
    (started,) = core.poll(60.0)
    core.close()
    gate.open()
    os.waitpid(started.pid, 0)


# ---- GPUs ------------------------------------------------------------------------------------------------------------

GPUS = [b"GPU-aa", b"GPU-bb", b"GPU-cc"]


def visible(run: Run, handle: int) -> list[str]:
    return run.output(handle).split()[0].split(",")


def test_each_gets_devices_of_its_own_or_a_part_of_one(start: Start, gate: Gate) -> None:
    run = start(workers=16, gpus=GPUS)
    say = f'echo "$CUDA_VISIBLE_DEVICES $PYSCHED_LANE"; {gate.hold}'
    asked = [1000, 400, 400, 300, 600]  # the last one has no place beside 0.4 + 0.4, but the third device
    handles = run.submit(*(run.shell(say, gpus=amount) for amount in asked))
    for handle in handles:
        run.started(handle)
        wait_until(lambda handle=handle: run.output(handle).endswith("\n"), "its line")  # type: ignore[misc]
    whole, *parts = (visible(run, handle) for handle in handles)
    assert all(len(devices) == 1 for devices in (whole, *parts))
    assert parts[0] == parts[1] != parts[2] == parts[3]
    assert whole not in parts
    (pair,) = run.submit(run.shell(say, gpus=2000))
    settle(run)
    assert pair not in begun(run)
    assert run.core.resources()[2:] == (300, 1)  # which others could have beside it
    gate.open()
    run.ends([*handles, pair])
    assert len(set(visible(run, pair))) == 2
    assert run.output(pair).split()[1] == "0"
    assert run.core.resources()[2] == 3000


def test_an_adopted_attempt_keeps_its_devices(tmp_path: Path, start: Start) -> None:
    path, guard = str(tmp_path / "table"), bytes(16)
    AttemptTable.begin(path, guard)
    table = AttemptTable(path, guard, rows=8)
    run = start(gpus=GPUS, table=table)
    (handle,) = run.submit(run.shell('echo "$CUDA_VISIBLE_DEVICES"', gpus=2000, token=7))
    run.end(handle)
    assert visible(run, handle) == ["GPU-aa", "GPU-bb"]
    assert len(table) == 1
    assert os.stat(path).st_size >= 2 * 128
