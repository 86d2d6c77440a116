"""The cap on what an attempt writes, and a disk that is full."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched._core import CAUSE_CANCEL, CAUSE_LOG_LIMIT, CAUSE_NONE, EXITED, SPAWN_FAILED

from .conftest import Run, wait_until

Start = Callable[..., Run]

LIMIT = 10_000
MARK = b"\n[pysched: over the limit of 10000 bytes, the rest is dropped]\n"
BOMB = "while :; do echo 0123456789 0123456789 0123456789; done"


def test_output_up_to_the_limit_is_left_alone(start: Start) -> None:
    run = start(log_limit=LIMIT)
    (handle,) = run.submit(run.shell(f"head -c {LIMIT} /dev/zero; head -c {LIMIT} /dev/zero >&2"))
    assert (run.end(handle).status, run.end(handle).cause) == (0, CAUSE_NONE)
    for suffix in ("out", "err"):
        assert (run.folder / f"{handle}.{suffix}").read_bytes() == bytes(LIMIT)


def test_output_over_the_limit_keeps_its_head_and_is_marked_however_short_the_attempt(start: Start) -> None:
    run = start(log_limit=LIMIT)
    out, err = run.submit(run.shell("seq 100000; echo short >&2"), run.shell("echo short; seq 100000 >&2"))
    assert [(event.status, event.cause) for event in run.ends([out, err])] == [(0, CAUSE_NONE)] * 2
    head = "".join(f"{number}\n" for number in range(1, 5000)).encode()[:LIMIT]
    assert (run.folder / f"{out}.out").read_bytes() == (run.folder / f"{err}.err").read_bytes() == head + MARK
    assert (run.folder / f"{out}.err").read_bytes() == (run.folder / f"{err}.out").read_bytes() == b"short\n"


def test_a_bomb_is_capped_while_it_runs_and_a_reader_sees_its_head(start: Start) -> None:
    run = start(log_limit=LIMIT)
    (handle,) = run.submit(run.shell(BOMB))
    run.started(handle)
    path = run.folder / f"{handle}.out"
    with path.open("rb") as reader:
        wait_until(lambda: os.pread(reader.fileno(), len(MARK), LIMIT) == MARK, "the mark")
        head = os.pread(reader.fileno(), LIMIT, 0)
        assert head == (b"0123456789 0123456789 0123456789\n" * LIMIT)[:LIMIT]
        # Whatever it goes on writing is cut again, and what is kept stays where it is.
        for _ in range(3):
            wait_until(lambda: os.fstat(reader.fileno()).st_size > 3 * LIMIT, "more output")
            wait_until(lambda: os.fstat(reader.fileno()).st_size < 3 * LIMIT, "the next cut")
            assert os.pread(reader.fileno(), LIMIT + len(MARK), 0) == head + MARK
        run.core.kill(handle, 0, CAUSE_CANCEL)
        assert run.end(handle).cause == CAUSE_CANCEL
        assert os.pread(reader.fileno(), 3 * LIMIT, 0) == head + MARK


def test_a_bomb_is_capped_also_after_a_quiet_time(start: Start) -> None:
    """The longer an attempt is quiet the rarer it is looked at, but never not."""
    run = start(log_limit=LIMIT)
    (handle,) = run.submit(run.shell(f"sleep 0.5; {BOMB}"))
    run.started(handle)
    with (run.folder / f"{handle}.out").open("rb") as reader:
        wait_until(lambda: os.pread(reader.fileno(), len(MARK), LIMIT) == MARK, "the mark")
    run.core.kill(handle, 0, CAUSE_CANCEL)
    assert run.end(handle).cause == CAUSE_CANCEL


def test_by_setting_a_bomb_ends_its_attempt(start: Start) -> None:
    run = start(log_limit=LIMIT, log_limit_ends=True)
    bomb, quick, deaf = run.submit(
        run.shell(BOMB),
        run.shell("seq 100000"),
        run.shell(f"trap '' TERM; {BOMB}", grace_s=0.05),
    )
    ends = run.ends([bomb, quick, deaf])
    assert {(event.kind, event.cause) for event in ends} == {(EXITED, CAUSE_LOG_LIMIT)}
    assert [event.status for event in ends] == [signal.SIGTERM, 0, signal.SIGKILL]
    for handle in (bomb, quick, deaf):
        assert (run.folder / f"{handle}.out").read_bytes().endswith(MARK)
        assert (run.folder / f"{handle}.out").stat().st_size == LIMIT + len(MARK)


def test_what_is_no_regular_file_is_not_touched(start: Start, tmp_path: Path) -> None:
    run = start(log_limit=LIMIT)
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(3 * LIMIT))
    (handle,) = run.submit(run.shell(f"rm 1.out; ln -s {victim} 1.out"))
    assert run.end(handle).status == 0
    assert victim.stat().st_size == 3 * LIMIT


# ---- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system that has room for three files."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"nr_inodes=4,size=1m") != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount2(bytes(folder), 2) == 0  # MNT_DETACH


def test_a_disk_without_room_for_logs_makes_attempts_wait(start: Start, small: Path) -> None:
    for number in range(2):
        (small / str(number)).touch()
    run = start()
    (handle,) = run.submit(run.shell("echo done", stdout=bytes(small / "out"), stderr=bytes(small / "err")))
    wait_until(lambda: run.core.counters()["backed_off"] >= 2, "the lane to back off")
    # While it tries again, the attempt is out of its bucket and counts as running.
    wait_until(lambda: (run.core.running, run.core.depths()) == (0, (0, 1, 0)), "the attempt to wait again")
    assert run.core.counters()["spawn_failed"] == 0
    (small / "0").unlink()
    assert run.end(handle).status == 0
    assert (small / "out").read_text() == "done\n"


def test_another_error_of_a_log_fails_the_start(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.shell("true", stdout=b"/dev/null/log"))
    assert (run.end(handle).kind, run.end(handle).errno) == (SPAWN_FAILED, errno.ENOTDIR)
