"""A Core is made or says why not, and ends whatever it is in the middle of."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched._core import CAUSE_CANCEL, AttemptTable, Core

from .conftest import Run, alive, few_descriptors, wait_until

Start = Callable[..., Run]


def open_files() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def file_size(largest: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_wherever_descriptors_run_out_it_is_an_error_and_none_is_left() -> None:
    Core(lanes=1, workers=1).close()  # the first one raises this process's limit
    before = open_files()
    said = set()
    for spare in range(13):  # all that it needs but one
        with few_descriptors(spare), pytest.raises(OSError, match="cannot be made") as failure:
            Core(lanes=2, workers=1)
        said.add(str(failure.value.args[1]).split(" cannot")[0])
        assert open_files() == before
    assert said == {"the thread that ends processes", "the thread that watches memory", "lane 0", "lane 1"}
    with few_descriptors(13):
        Core(lanes=2, workers=1).close()
    assert open_files() == before


def test_a_bell_of_the_guard_that_is_none_is_an_error() -> None:
    before = open_files()
    with pytest.raises(OSError, match="the guard cannot be watched"):
        Core(lanes=1, workers=1, guard=(os.getppid(), 2**31 - 1))
    assert open_files() == before


@pytest.mark.parametrize(("size", "rows", "error"), [(100, 0, "is no table"), (128, 2**20, "too large")])
def test_a_table_of_attempts_that_cannot_be_had_is_an_error(tmp_path: Path, size: int, rows: int, error: str) -> None:
    path = tmp_path / "attempts.table"
    AttemptTable.begin(str(path), b"g" * 16)
    os.truncate(path, size)
    before = open_files()
    with file_size(2**20), pytest.raises(OSError, match=error):
        AttemptTable(str(path), b"g" * 16, rows=rows)
    assert open_files() == before


def test_a_core_closes_while_attempts_have_their_grace_and_alarms_are_pending(tmp_path: Path) -> None:
    run = Run(tmp_path, lanes=2, workers=2)
    script = "trap 'echo told' TERM; echo ready; while :; do sleep 0.01; done"
    handles = run.submit(run.shell(script), run.shell(script))
    pids = [run.started(handle).pid for handle in handles]
    for handle in handles:
        wait_until(lambda: "ready" in run.output(handle), "the trap")  # noqa: B023
        run.core.kill(handle, 600.0, CAUSE_CANCEL)
        wait_until(lambda: "told" in run.output(handle), "TERM")  # noqa: B023
    run.core.arm(600.0, 1)
    run.core.close()
    try:
        assert all(alive(pid) for pid in pids)  # close leaves what runs
    finally:
        for pid in pids:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


OWN_LIMIT = """
import os, resource, sys
from pysched._core import *
if sys.argv[1] == "own":
    resource.setrlimit(15, (10**12, 10**12))
script = b"echo there; trap '' TERM; setsid sh -c 'echo $$ > $PYSCHED_TASK_ID; exec sleep 600' & wait"
core = Core(lanes=1, workers=2)
core.submit([
    Launch(handle=handle, priority=0, rank=0, sequence=handle, argv=[b"sh", b"-c", script], candidates=[b"/bin/sh"],
        env=[b"PATH=/usr/bin:/bin", b"PYSCHED_TASK_ID=%d.pid" % handle], cwd=os.getcwdb(), stdout=b"%d.log" % handle,
        stderr=b"/dev/null", grace_s=0.0, memory=memory)
    for handle, memory in [(1, 0), (2, 2**40)]
])
ends = {}
while len(ends) < 2:
    for event in core.poll(0.01):
        if event.kind == EXITED:
            ends[event.handle] = event
    for handle in (1, 2):
        if os.path.exists(f"{handle}.pid") and open(f"{handle}.pid").read():
            core.kill(handle, 0.0, CAUSE_CANCEL)
print([(ends[handle].cause, ends[handle].status, ends[handle].survivors) for handle in (1, 2)])
core.close()
"""


@pytest.mark.parametrize("limit", ["own", "a mark"])
def test_a_process_whose_own_limit_leaves_no_room_for_marks_ends_its_trees(
    start: Start, tmp_path: Path, limit: str
) -> None:
    """By sessions and parents where somebody has limited it, by half a mark where it is an attempt itself."""
    run = start()
    (handle,) = run.submit(run.python(OWN_LIMIT, limit))
    assert run.end(handle).status == 0, (run.folder / f"{handle}.err").read_text()
    assert run.output(handle) == f"{[(CAUSE_CANCEL, signal.SIGKILL.value, 0)] * 2}\n"
    assert not any(alive(int((tmp_path / f"{number}.pid").read_text())) for number in (1, 2))
