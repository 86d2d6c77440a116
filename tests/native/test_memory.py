"""Attempts with a limit of memory: what uses more is ended, whoever of its processes does; nothing else is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from pysched._core import CAUSE_CANCEL, CAUSE_MEMORY, CAUSE_NONE, EXITED, AttemptTable, Core

from .conftest import Run, alive, process_state, wait_until

Start = Callable[..., Run]

MIB = 2**20
LIMIT = 64 * MIB
# Touches so many MiB, then says so and stays.
TAKES = """
import sys, time
block = bytearray(int(sys.argv[1]) << 20)
block[::4096] = b"x" * len(block[::4096])
print("taken", flush=True)
time.sleep(600)
"""


def takes(run: Run, mib: int, **given: object) -> int:
    env = [b"=".join(item) for item in os.environb.items()]
    (handle,) = run.submit(run.launch(sys.executable, "-S", "-c", TAKES, str(mib), env=env, **given))
    return handle


def test_what_takes_more_is_ended_with_its_peak_and_its_neighbour_is_not(start: Start) -> None:
    run = start(memory=4 * LIMIT)
    neighbour = takes(run, 20, memory=LIMIT)
    run.started(neighbour)
    hungry = takes(run, 200, memory=LIMIT)
    end = run.end(hungry)
    assert (end.kind, end.cause) == (EXITED, CAUSE_MEMORY)
    assert end.max_rss_kb > LIMIT // 1024
    wait_until(lambda: run.output(neighbour) == "taken\n", "the neighbour's memory")
    assert alive(run.started(neighbour).pid)
    run.core.kill(neighbour, 0.0, CAUSE_CANCEL)
    end = run.end(neighbour)
    assert end.cause == CAUSE_CANCEL
    assert run.core.resources()[1] == 4 * LIMIT


def test_without_a_limit_nothing_is_ended(start: Start) -> None:
    run = start()
    handle = takes(run, 100)
    run.started(handle)
    wait_until(lambda: run.output(handle) == "taken\n", "its memory")
    limited = takes(run, 200, memory=LIMIT)
    assert run.end(limited).cause == CAUSE_MEMORY  # a look has gone by
    assert alive(run.started(handle).pid)
    run.core.kill(handle, 0.0, CAUSE_CANCEL)
    assert run.end(handle).cause == CAUSE_CANCEL


def test_all_processes_of_an_attempt_count_also_those_that_hide(start: Start, tmp_path: Path) -> None:
    run = start()
    (tmp_path / "takes.py").write_text(TAKES)
    script = f"for i in 1 2 3; do setsid -f {sys.executable} -S takes.py 30; done; sleep 600"
    (handle,) = run.submit(run.shell(script, memory=LIMIT))
    end = run.end(handle)
    assert (end.kind, end.cause) == (EXITED, CAUSE_MEMORY)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            assert b"takes.py" not in Path("/proc", entry, "cmdline").read_bytes() or process_state(int(entry)) in "ZX"
        except OSError:
            continue


SHARES = """
import os, sys, time
block = bytearray(int(sys.argv[1]) << 20)
block[::4096] = b"x" * len(block[::4096])
for _ in range(4):
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
print("taken", flush=True)
time.sleep(600)
"""


def test_pages_that_its_processes_share_count_once(start: Start) -> None:
    """Five processes with the same 100 MiB: 500 resident, 100 in truth."""
    run = start()
    env = [b"=".join(item) for item in os.environb.items()]
    (handle,) = run.submit(run.launch(sys.executable, "-S", "-c", SHARES, "100", env=env, memory=300 * MIB))
    pid = run.started(handle).pid
    wait_until(lambda: run.output(handle) == "taken\n", "its memory")
    probe = takes(run, 200, memory=LIMIT)
    assert run.end(probe).cause == CAUSE_MEMORY  # looks have gone by
    assert alive(pid)
    run.core.kill(handle, 0.0, CAUSE_CANCEL)
    end = run.end(handle)
    assert end.cause == CAUSE_CANCEL
    assert end.max_rss_kb < 300 * 1024


def test_one_that_ends_by_itself_within_its_limit_is_told_as_ever(start: Start) -> None:
    run = start()
    handles = run.submit(*(run.launch("/bin/true", memory=LIMIT) for _ in range(50)))
    assert {(event.status, event.cause) for event in run.ends(handles)} == {(0, CAUSE_NONE)}


def test_an_attempt_that_is_over_its_limit_says_so_in_its_row(tmp_path: Path, start: Start) -> None:
    """For whoever adopts it while it is being ended."""
    path, guard = str(tmp_path / "table"), bytes(16)
    AttemptTable.begin(path, guard)
    table = AttemptTable(path, guard, rows=8)
    run = start(table=table)
    handle = takes(run, 200, memory=LIMIT, token=7)
    assert run.end(handle).cause == CAUSE_MEMORY
    row = table.row(7)
    assert row.ending
    assert row.end(handle).cause == CAUSE_MEMORY


def test_a_core_with_a_limited_attempt_can_be_closed(start: Start) -> None:
    run = start()  # a maker of launches
    core = Core(lanes=1, workers=1)
    core.submit([run.launch("/bin/sleep", "600", memory=LIMIT)])
    (started,) = core.poll(60.0)
    core.close()
    os.kill(started.pid, 9)
    os.waitpid(started.pid, 0)
