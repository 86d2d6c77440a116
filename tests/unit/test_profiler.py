"""profiler.csv: what a row says, when it is written, and what the file survives."""

from __future__ import annotations

import csv
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched import profiler
from pysched.errors import NodeError, StoreError
from pysched.model import AttemptKey, Exit, Outcome, State
from pysched.profile_csv import COLUMNS, HEADER
from pysched.profiler import End, Ended, Profiler, Sample, Window, next_tick, quantile

CONTRACT = (
    "ts_ms,throughput,queued_high,queued_med,queued_low,running,submitted,succeeded,failed,retried,cancelled,"
    "wait_p50_ms,wait_p95_ms,wait_p99_ms,run_p50_ms,run_p95_ms,cpu_pct,rss_mb"
)
SAMPLE = Sample(queued_high=1, queued_med=2, queued_low=3, running=4, submitted=5)
TIMEOUT_S = 30.0


def test_the_header_is_the_contracts() -> None:
    assert HEADER == CONTRACT


@given(st.lists(st.integers(0, 1000), min_size=1).map(sorted), st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0]))
def test_quantile_is_the_nearest_rank(ordered: list[int], q: float) -> None:
    """The smallest value that at least q of all are not above."""
    value = quantile(ordered, q)
    assert value is not None
    assert sum(one <= value for one in ordered) >= q * len(ordered) - 1e-9
    assert sum(one < value for one in ordered) < q * len(ordered) + 1e-9
    assert value in ordered


def test_quantile_of_nothing_is_nothing() -> None:
    assert quantile([], 0.5) is None


def test_a_window_counts_the_last_second_and_totals_since_the_start() -> None:
    window = Window()
    window.add([Ended(End.SUCCEEDED, wait, 10 * wait) for wait in range(1, 101)])
    window.add([Ended(End.FAILED, None, 7), Ended(End.RETRIED, None, None), Ended(End.CANCELLED, 1, None)])
    first = window.close(2.0)
    assert first == {
        "throughput": 51.5,
        "succeeded": 100, "failed": 1, "retried": 1, "cancelled": 1,
        "wait_p50_ms": 50, "wait_p95_ms": 95, "wait_p99_ms": 99, "run_p50_ms": 500, "run_p95_ms": 950,
    }  # fmt: skip
    window.add([Ended(End.SUCCEEDED, 3, 4)])
    second = window.close(1.0)
    assert (second["throughput"], second["succeeded"], second["failed"], second["wait_p99_ms"]) == (1.0, 101, 1, 3)
    third = window.close(1.0)
    assert (third["throughput"], third["succeeded"], third["wait_p50_ms"], third["run_p95_ms"]) == (
        0.0,
        101,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (State.SUCCEEDED, End.SUCCEEDED),
        (State.FAILED, End.FAILED),
        (State.CANCELLED, End.CANCELLED),
        (State.SCHEDULED, End.RETRIED),
        (State.QUEUED, End.RETRIED),
    ],
)
def test_the_end_of_an_outcome(state: State, end: End) -> None:
    ended = Exit(pid=1, started_at=None, finished_at=datetime.now(timezone.utc))
    key = AttemptKey(id="a", attempt=1, token=1)
    outcome = Outcome(key=key, exit=ended, attempt_state=State.FAILED, next_state=state, reason=None)
    assert End.of(outcome) is end


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0.01, 10))
def test_ticks_lie_on_the_grid_and_missed_ones_stay_missed(start: float, ahead: float, period: float) -> None:
    now = start + ahead
    tick = next_tick(start, now, period)
    assert now < tick + 1e-6
    assert tick - now <= period + 1e-6
    steps = (tick - start) / period
    assert math.isclose(steps, round(steps), abs_tol=1e-3)


def test_cpu_percent() -> None:
    assert profiler.cpu_percent((10, 100), (13, 104)) == 75.0
    assert profiler.cpu_percent((10, 100), (9, 104)) == 0.0  # the kernel's idle time may step back
    assert profiler.cpu_percent((10, 100), (10, 100)) is None


class Rows:
    """A profiler under test that tells when it takes a sample."""

    def __init__(self, path: Path, answer: Callable[[], Sample] = lambda: SAMPLE) -> None:
        self.path = path
        self.answer = answer
        self.taken = threading.Semaphore(0)
        self.profiler = Profiler(path, self._sample, period_s=0.01)

    def _sample(self) -> Sample:
        self.taken.release()
        return self.answer()

    def await_samples(self, count: int) -> None:
        for _ in range(count):
            assert self.taken.acquire(timeout=TIMEOUT_S)

    def read(self, path: Path | None = None) -> list[dict[str, str]]:
        with (path or self.path).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert all(None not in row and None not in row.values() for row in rows)
        return rows


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    rows = Rows(tmp_path / "home" / "profiler.csv")
    yield rows
    rows.profiler.stop()


def test_rows_come_with_the_tick_and_a_last_one_at_the_end(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "profiler.csv")
    before = time.time_ns() // 1_000_000
    rows.profiler.start()
    rows.profiler.observe(End.SUCCEEDED, 12, 34)
    rows.await_samples(3)
    rows.profiler.observe_many([Ended(End.FAILED, 1, 2), Ended(End.RETRIED, None, 2)])
    rows.profiler.stop()
    found = rows.read()
    assert len(found) >= 4
    assert tuple(found[0]) == COLUMNS
    stamps = [int(row["ts_ms"]) for row in found]
    assert stamps == sorted(stamps)
    assert before <= stamps[0] <= stamps[-1] <= time.time_ns() // 1_000_000 + 1
    last = found[-1]
    assert [last[name] for name in ("succeeded", "failed", "retried", "cancelled")] == ["1", "1", "1", "0"]
    assert [last[name] for name in ("queued_high", "queued_med", "queued_low", "running", "submitted")] == list("12345")
    assert sum(float(row["throughput"]) > 0 for row in found) <= 3
    assert float(last["rss_mb"]) > 1
    assert rows.path.read_text().count(HEADER) == 1
    assert "profiler" not in {thread.name for thread in threading.enumerate()}


def test_the_first_row_already_knows_the_load(tmp_path: Path) -> None:
    taken = threading.Event()

    def sample() -> Sample:
        taken.set()
        return SAMPLE

    profile = Profiler(tmp_path / "profiler.csv", sample, period_s=0.3)
    profile.start()
    deadline = time.monotonic() + TIMEOUT_S
    while not taken.is_set():  # keep a processor busy
        assert time.monotonic() < deadline
    profile.stop()
    first = Rows(tmp_path / "profiler.csv").read()[0]
    assert 0 < float(first["cpu_pct"]) <= 100


def test_a_short_last_row_claims_no_rate_that_nobody_saw(tmp_path: Path) -> None:
    profile = Profiler(tmp_path / "profiler.csv", lambda: SAMPLE)  # a period of 1 s
    profile.start()
    profile.observe_many([Ended(End.SUCCEEDED, 1, 1)] * 5)
    profile.stop()
    (row,) = Rows(tmp_path / "profiler.csv").read()[-1:]
    assert float(row["throughput"]) <= 5


def test_totals_are_exact_over_many_threads(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "profiler.csv")
    rows.profiler.start()
    together = threading.Barrier(4)

    def report() -> None:
        together.wait(TIMEOUT_S)
        for _ in range(500):
            rows.profiler.observe_many([Ended(End.SUCCEEDED, 1, 1), Ended(End.FAILED, 1, 1)])

    threads = [threading.Thread(target=report) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows.profiler.stop()
    last = rows.read()[-1]
    assert (last["succeeded"], last["failed"]) == ("2000", "2000")


def test_a_store_that_is_away_costs_its_cells_only(rows: Rows) -> None:
    def answer() -> Sample:
        raise StoreError("away")

    rows.answer = answer
    rows.profiler.start()
    rows.profiler.observe(End.SUCCEEDED, 1, 1)
    rows.await_samples(2)
    rows.answer = lambda: replace(SAMPLE, running=9)
    rows.await_samples(2)
    rows.profiler.stop()
    found = rows.read()
    assert [found[0][name] for name in ("queued_high", "running", "submitted", "succeeded")] == ["", "", "", "1"]
    assert found[-1]["running"] == "9"


def test_goes_on_in_an_old_file_and_cuts_its_torn_line(rows: Rows) -> None:
    rows.path.parent.mkdir()
    old = "1,2.0,,,,,0,0,0,0,0,,,,,,3.0,4.0\n"
    rows.path.write_text(f"{HEADER}\n{old}17000000")
    rows.profiler.start()
    rows.await_samples(1)
    rows.profiler.stop()
    lines = rows.path.read_text().splitlines(keepends=True)
    assert lines[:2] == [f"{HEADER}\n", old]
    found = rows.read()
    assert len(found) == len(lines) - 1 >= 2
    assert int(found[1]["ts_ms"]) <= time.time_ns() // 1_000_000 + 1  # the torn digits are not part of it
    assert os.listdir(rows.path.parent) == ["profiler.csv"]


@pytest.mark.parametrize("content", ["time,load\n1,2\n", f"{HEADER},more\n", "\x00\xff"])
def test_a_file_of_other_columns_is_moved_aside(rows: Rows, content: str) -> None:
    rows.path.parent.mkdir()
    rows.path.write_text(content)
    rows.profiler.start()
    rows.profiler.stop()
    assert rows.read()
    (aside,) = (name for name in os.listdir(rows.path.parent) if name != "profiler.csv")
    assert aside.startswith("profiler.csv.")
    assert (rows.path.parent / aside).read_text() == content


def test_rotates(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "ROTATE_BYTES", len(HEADER) + 100)  # two rows
    rows.profiler.start()
    rows.await_samples(6)
    rows.profiler.stop()
    rotated = rows.path.with_name("profiler.csv.1")
    assert 1 <= len(rows.read(rotated)) <= 3
    assert rotated.stat().st_size < len(HEADER) + 400
    assert set(os.listdir(rows.path.parent)) <= {"profiler.csv", "profiler.csv.1"}


def test_begins_again_when_the_folder_went_away(rows: Rows, tmp_path: Path) -> None:
    """A row that cannot be written is lost; the node and the profile go on."""
    rows.profiler.start()
    rows.await_samples(2)
    rows.path.parent.rename(tmp_path / "gone")
    rows.await_samples(2)
    rows.path.parent.mkdir()
    rows.await_samples(2)
    rows.profiler.stop()
    assert rows.read()


def test_a_row_that_the_disk_took_in_part_is_undone(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    left = [2]  # rows to tear

    def torn(fd: int, data: bytes) -> int:
        if left[0] and data.endswith(b"\n") and b"," in data:
            left[0] -= 1
            return write(fd, data[: len(data) // 2])
        return write(fd, data)

    monkeypatch.setattr(os, "write", torn)
    rows.profiler.start()
    rows.await_samples(4)
    rows.profiler.stop()
    assert left == [0]
    assert rows.path.read_text().startswith(f"{HEADER}\n")
    assert rows.read()


def test_no_profile_where_there_can_be_none(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "fifo", tmp_path / "file" / "profiler.csv"):
        with pytest.raises(NodeError, match="cannot keep the profile there"):
            Profiler(path, lambda: SAMPLE).start()


def test_stopping_what_never_started_does_nothing(tmp_path: Path) -> None:
    Profiler(tmp_path / "profiler.csv", lambda: SAMPLE).stop()
    assert os.listdir(tmp_path) == []
