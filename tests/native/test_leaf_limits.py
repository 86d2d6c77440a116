"""Limits of memory that the kernel keeps: what an attempt has in its leaf is counted, and ended at the limit.

Where there is no memory controller of version 2 these tests are skipped; `make test-machine` runs them on a kernel that
has one.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched import delegation
from pysched._core import CAUSE_CANCEL, CAUSE_MEMORY, CAUSE_NONE, EXITED

from .conftest import Run, alive, wait_until
from .test_memory import LIMIT, MIB, takes

Start = Callable[..., Run]

# Forks a child that hides from the watch and takes so many MiB; the leader takes none.
CHILD_TAKES = """
import os, resource, sys, time
if os.fork() == 0:
    os.setsid()
    resource.prlimit(0, 15, (7, 7))
    block = bytearray(int(sys.argv[1]) << 20)
    block[::4096] = b"x" * len(block[::4096])
time.sleep(600)
"""


@pytest.fixture
def limited(leaves: Path) -> Iterator[Path]:
    """The folder of leaves with limits."""
    try:
        with delegation.limited_folder(leaves.name.removeprefix("pysched-")) as path:
            yield path
    except delegation.NotDelegated as error:
        pytest.skip(str(error))
    assert not path.exists()


@pytest.fixture
def start(limited: Path, leaves: Path, start: Start) -> Start:
    return functools.partial(start, cgroup=leaves, limited=limited)


def leaves_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def read(leaf: Path, name: str) -> str:
    return (leaf / name).read_text().strip()


def test_an_attempt_with_a_limit_has_a_leaf_with_that_limit_and_others_have_none(
    start: Start, limited: Path, leaves: Path
) -> None:
    run = start()
    with_limit, without = run.submit(run.launch("/bin/sleep", "1000", memory=LIMIT), run.launch("/bin/sleep", "1000"))
    pids = [run.started(handle).pid for handle in (with_limit, without)]
    (leaf,) = leaves_in(limited)
    assert read(leaf, "cgroup.procs") == str(pids[0])
    assert int(read(leaf, "memory.max")) == LIMIT
    assert read(leaf, "memory.oom.group") == "1"
    assert not (leaf / "memory.swap.max").exists() or read(leaf, "memory.swap.max") == "0"
    (other,) = leaves_in(leaves)
    assert read(other, "cgroup.procs") == str(pids[1])
    assert not (other / "memory.max").exists()
    for handle in (with_limit, without):
        run.core.kill(handle, 0.0, CAUSE_CANCEL)
        assert run.end(handle).cause == CAUSE_CANCEL


def test_what_takes_more_is_ended_by_the_kernel_and_its_neighbour_is_not(start: Start, limited: Path) -> None:
    run = start()
    neighbour = takes(run, 20, memory=LIMIT)
    hungry = takes(run, 2000, memory=LIMIT)
    end = run.end(hungry)
    assert (end.kind, end.cause, end.status) == (EXITED, CAUSE_MEMORY, signal.SIGKILL)
    # The watch, which looks from time to time, would have found it with more than its limit.
    assert LIMIT // 1024 - 1024 <= end.max_rss_kb <= LIMIT // 1024
    wait_until(lambda: run.output(neighbour) == "taken\n", "the neighbour's memory")
    run.core.kill(neighbour, 0.0, CAUSE_CANCEL)
    assert run.end(neighbour).cause == CAUSE_CANCEL


def test_a_process_that_hides_counts_and_takes_all_with_it(start: Start, limited: Path) -> None:
    run = start()
    env = [b"=".join(item) for item in os.environb.items()]
    (handle,) = run.submit(run.launch(sys.executable, "-S", "-c", CHILD_TAKES, "200", env=env, memory=LIMIT))
    end = run.end(handle)
    assert (end.kind, end.cause) == (EXITED, CAUSE_MEMORY)
    for leaf in leaves_in(limited):
        wait_until(lambda leaf=leaf: "populated 0" in read(leaf, "cgroup.events"), "its end")  # type: ignore[misc]


def test_ends_within_the_limit_are_told_as_ever_and_leaves_are_used_again(start: Start, limited: Path) -> None:
    run = start()
    handles = run.submit(*(run.launch("/bin/true", memory=LIMIT) for _ in range(30)))
    assert {(event.status, event.cause) for event in run.ends(handles)} == {(0, CAUSE_NONE)}
    (killed,) = run.submit(run.shell("kill -9 $$", memory=LIMIT))
    assert (run.end(killed).status, run.end(killed).cause) == (signal.SIGKILL, CAUSE_NONE)
    for memory in (LIMIT, 2 * LIMIT, LIMIT):
        run.end(run.submit(run.launch("/bin/true", memory=memory))[0])
    assert len(leaves_in(limited)) < 34
    # The leaf with the higher limit was the last one used, and was left alone.
    assert max(int(read(path, "memory.max")) for path in leaves_in(limited)) == 2 * LIMIT


def test_files_that_are_read_do_not_end_a_job_nor_count_in_its_peak(
    start: Start, limited: Path, tmp_path: Path
) -> None:
    run = start()
    with (tmp_path / "large").open("wb") as file:  # on a disk, or nothing is tried here
        file.write(b"x" * (3 * LIMIT))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    (handle,) = run.submit(run.shell("cat large > /dev/null; cat large | cat > /dev/null", memory=LIMIT))
    end = run.end(handle)
    assert (end.status, end.cause) == (0, CAUSE_NONE)
    assert end.max_rss_kb < LIMIT // 1024 // 2


def test_several_at_once_end_each_by_its_own_limit(start: Start, limited: Path) -> None:
    run = start(lanes=2, workers=8)
    sizes = [16 * MIB, 32 * MIB, 64 * MIB]
    handles = [takes(run, 300, memory=size) for size in sizes * 2]
    ends = run.ends(handles)
    assert {end.cause for end in ends} == {CAUSE_MEMORY}
    for size, end in zip(sizes * 2, ends, strict=True):
        assert end.max_rss_kb <= size // 1024


def test_a_daemon_keeps_its_limit_after_its_attempt(start: Start, limited: Path) -> None:
    run = start()
    script = "setsid -f sh -c 'echo $$ > pid; exec sleep 1000'; while [ ! -s pid ]; do :; done"
    (handle,) = run.submit(run.shell(script, memory=LIMIT))
    assert run.end(handle).status == 0
    (leaf,) = leaves_in(limited)
    daemon = int(read(leaf, "cgroup.procs"))
    (next_one,) = run.submit(run.launch("/bin/sleep", "1000", memory=2 * LIMIT))
    run.started(next_one)
    assert sorted(int(read(path, "memory.max")) for path in leaves_in(limited)) == [LIMIT, 2 * LIMIT]
    run.core.kill(next_one, 0.0, CAUSE_CANCEL)
    run.end(next_one)
    os.kill(daemon, signal.SIGKILL)
    wait_until(lambda: not alive(daemon), "its end")
