"""Reused workers with GPUs: one makes calls for the devices that it was born with, and lets go of them for others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysched._core import CAUSE_CANCEL, EXITED, WITHDRAWN

from .conftest import Gate, Run, alive, wait_until
from .test_worker import Reused

JOBS = """
import os

born = os.environ.get("CUDA_VISIBLE_DEVICES")

def says():
    return [os.getpid(), born, os.environ.get("CUDA_VISIBLE_DEVICES")]

def waits():
    gate = os.open("gate", os.O_RDONLY)
    os.read(gate, 1)
    os.close(gate)
    return says()
"""
Make = Callable[..., Reused]


@pytest.fixture
def jobs(start: Callable[..., Run], tmp_path: Path) -> Iterator[Make]:
    """A maker of runs on the GPUs 0 and 1: jobs(lanes=, workers=)."""
    (tmp_path / "jobs.py").write_text(JOBS)
    made: list[Reused] = []

    def make(**options: Any) -> Reused:
        made.append(Reused(start(**{"gpus": [b"0", b"1"], **options}), tmp_path, ("numpy",), None))
        made[-1].zygote.start()
        return made[-1]

    yield make
    for each in made:
        each.zygote.stop()


def test_a_worker_makes_calls_for_the_devices_it_was_born_with_alone(jobs: Make, gate: Gate) -> None:
    run = jobs(workers=3)
    first = run.submit("jobs:waits", gpus=1000)
    run.run.started(first)
    second = run.submit("jobs:waits", gpus=1000)
    run.run.started(second)
    gate.open()
    one, other = run.result(first), run.result(second)
    assert {one[1], other[1]} == {"0", "1"}
    without = run.call("jobs:says")
    assert without[1:] == [None, None]
    assert run.call("jobs:says") == without
    pair = run.call("jobs:says", gpus=2000)
    assert pair[1:] == ["0,1", "0,1"]
    assert len({each[0] for each in (one, other, without, pair)}) == 4
    wait_until(lambda: not alive(one[0]) and not alive(other[0]), "those whose devices it got")
    assert run.call("jobs:says", gpus=2000) == pair
    assert run.call("jobs:says") == without


@pytest.mark.parametrize("lanes", [1, 4])
def test_calls_go_to_the_lane_and_the_devices_of_an_idle_worker(jobs: Make, lanes: int) -> None:
    run = jobs(lanes=lanes, workers=8)
    handles = [run.submit("jobs:says", gpus=1000) for _ in range(60)]
    said = [run.result(handle) for handle in handles]
    assert all(born == now for _, born, now in said)
    assert len({pid for pid, _, _ in said}) <= 2


@pytest.mark.parametrize("amount", [300, 1000])
def test_of_several_devices_an_idle_workers_are_taken_if_that_makes_no_difference(
    jobs: Make, gate: Gate, amount: int
) -> None:
    run = jobs(lanes=2, workers=8)
    (other,) = run.run.submit(run.run.shell(gate.hold, gpus=1000))
    run.run.started(other)
    second = run.call("jobs:says", gpus=amount)
    assert second[1] == "1"
    gate.open()
    run.run.end(other)
    assert run.call("jobs:says", gpus=amount) == second
    # A part goes where a part is taken already, so that a whole one is left.
    os.read(os.open(run.folder / "gate", os.O_RDONLY | os.O_NONBLOCK), 65536)
    handles = [run.submit("jobs:waits", gpus=300, reuse=2) for _ in range(2)]
    for handle in handles:
        run.run.started(handle)
    assert run.run.core.resources()[2] == 1400
    assert run.call("jobs:says", gpus=1000)[2] in {"0", "1"}
    gate.open()
    assert len({run.result(handle)[1] for handle in handles}) == 1


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("kind", ["command", "forked", "another"])
def test_an_idle_worker_ends_when_its_devices_are_given_to_others(jobs: Make, lanes: int, kind: str) -> None:
    run = jobs(lanes=lanes, workers=8, gpus=[b"0"])
    for _ in range(2 * lanes):  # in different lanes
        pid = run.call("jobs:says", gpus=1000)[0]
        if kind == "command":
            run.run.end(run.run.submit(run.run.shell("true", gpus=500))[0])
        else:
            assert run.call("jobs:says", gpus=500, reuse=2 if kind == "another" else 0)[0] != pid
        wait_until(lambda pid=pid: not alive(pid), "its end")  # type: ignore[misc]
        assert run.call("jobs:says", gpus=1000)[0] != pid


def test_calls_with_parts_of_a_device_keep_their_workers(jobs: Make, gate: Gate) -> None:
    run = jobs(lanes=2, workers=8, gpus=[b"0"])
    handles = [run.submit("jobs:waits", gpus=300) for _ in range(3)]
    for handle in handles:
        run.run.started(handle)
    gate.open()
    pids = {run.result(handle)[0] for handle in handles}
    assert len(pids) == 3
    for _ in range(6):
        assert run.call("jobs:says", gpus=300)[0] in pids
    assert all(map(alive, pids))
    assert run.call("jobs:says", gpus=1000)[0] in pids  # which may fill it
    wait_until(lambda: sum(map(alive, pids)) == 1, "the others' ends")


def test_a_call_on_its_way_to_another_lane_may_be_cancelled(jobs: Make) -> None:
    run = jobs(lanes=4, workers=8)
    for _ in range(30):
        handles = [run.submit("jobs:says", gpus=500, reuse=1 + number % 2) for number in range(8)]
        for handle in handles[::3]:
            run.run.core.kill(handle, 0.0, CAUSE_CANCEL)
        events = run.run.ends(handles)
        assert {event.kind for event in events} <= {EXITED, WITHDRAWN}
        assert all(event.status == 0 for event in events if event.cause != CAUSE_CANCEL)
    assert run.run.core.resources()[2] == 2000  # nothing is held any more
    assert run.call("jobs:says", gpus=1000)[1] in {"0", "1"}


def test_they_end_with_the_core(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    run = Reused(Run(tmp_path, lanes=3, workers=3, gpus=[b"0", b"1"]), tmp_path, ("numpy",), None)
    run.zygote.start()
    try:
        pids = {run.call("jobs:says", gpus=gpus)[0] for gpus in (1000, 0)}
    finally:
        run.run.core.close()
        run.zygote.stop()
    assert len(pids) == 2
    assert not any(map(alive, pids))
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
