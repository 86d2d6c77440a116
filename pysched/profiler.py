"""`profiler.csv`: a row a second about a node (CONTRACT § Files, columns in `pysched.profile_csv`).

`Window` is the pure part: it gathers what ended and turns it into the figures of one row.  `Profiler` is
the edge: a thread with a 1 Hz tick on the monotonic clock, the machine's CPU and the node's memory, and
the file.

What a cell means where it is not plain: quantiles are exact (nearest rank) over the attempts that ended
since the previous row and are empty if none did, since 0 would read as "no wait"; the cells that come from
the store are empty while it cannot be asked; `cpu_pct` is the whole machine's (jobs come and go between
two looks, their sum cannot be had after the fact), `rss_mb` the node process's own.
"""

from __future__ import annotations

import enum
import math
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from pysched.errors import NodeError, StoreError
from pysched.model import Outcome, State
from pysched.profile_csv import COLUMNS, HEADER
from pysched.vitals import Vitals

ROTATE_BYTES = 64 * 1024 * 1024  # a week of rows
WINDOW_SAMPLES = 200_000  # quantiles look at the last so many attempts of a second; bounds memory if a disk hangs

_log = structlog.get_logger("pysched.profiler")


class End(enum.Enum):
    """What an ended attempt did to its task."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRIED = "retried"  # another attempt follows: after a failure, or handed back
    CANCELLED = "cancelled"

    @classmethod
    def of(cls, outcome: Outcome) -> End:
        return _ENDS.get(outcome.next_state, cls.RETRIED)


_ENDS = {State.SUCCEEDED: End.SUCCEEDED, State.FAILED: End.FAILED, State.CANCELLED: End.CANCELLED}


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended."""

    kind: End
    wait_ms: int | None  # accepted → started; None if it is not known or was counted with an earlier attempt
    run_ms: int | None  # started → finished; None if it never ran


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What only the store and the node know, asked once a row."""

    queued_high: int
    queued_med: int
    queued_low: int
    running: int
    submitted: int  # total since the node started


def quantile(ordered: Sequence[int], q: float) -> int | None:
    """The nearest-rank quantile, 0 < q ≤ 1, of an ascending sequence; None of an empty one."""
    return ordered[math.ceil(q * len(ordered)) - 1] if ordered else None


class Window:
    """What ended since the last row, and the totals since the start."""

    def __init__(self) -> None:
        self._ended = 0
        self._totals = dict.fromkeys(End, 0)
        self._wait_ms: deque[int] = deque(maxlen=WINDOW_SAMPLES)
        self._run_ms: deque[int] = deque(maxlen=WINDOW_SAMPLES)

    def add(self, ended: Iterable[Ended]) -> None:
        for one in ended:
            self._ended += 1
            self._totals[one.kind] += 1
            if one.wait_ms is not None:
                self._wait_ms.append(one.wait_ms)
            if one.run_ms is not None:
                self._run_ms.append(one.run_ms)

    def add_all(self, counts: Mapping[End, int], waits_ms: Sequence[int], runs_ms: Sequence[int]) -> None:
        """The same of attempts that all have run."""
        for kind, count in counts.items():
            self._ended += count
            self._totals[kind] += count
        self._wait_ms.extend(waits_ms)
        self._run_ms.extend(runs_ms)

    def close(self, seconds: float) -> dict[str, float | int | None]:
        """The figures of the `seconds` (> 0) since the last call, by column name; then starts anew."""
        wait, run = sorted(self._wait_ms), sorted(self._run_ms)
        figures: dict[str, float | int | None] = {
            "throughput": self._ended / seconds,
            **{end.value: total for end, total in self._totals.items()},
            "wait_p50_ms": quantile(wait, 0.50),
            "wait_p95_ms": quantile(wait, 0.95),
            "wait_p99_ms": quantile(wait, 0.99),
            "run_p50_ms": quantile(run, 0.50),
            "run_p95_ms": quantile(run, 0.95),
        }
        self._ended = 0
        self._wait_ms.clear()
        self._run_ms.clear()
        return figures


def cpu_percent(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """The busy share between two (busy, all) marks, 0 … 100; None if they are too close to tell."""
    busy, every = after[0] - before[0], after[1] - before[1]
    return min(max(100.0 * busy / every, 0.0), 100.0) if every > 0 else None


def line_of(figures: dict[str, float | int | None]) -> str:
    """A row of the file, newline included; a column that is missing or None becomes an empty cell."""
    return ",".join(map(_cell, map(figures.get, COLUMNS))) + "\n"


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def next_tick(start: float, now: float, period: float) -> float:
    """The first of the instants start + n·period after `now`: no drift, and ticks that were missed stay missed."""
    return start + (math.floor((now - start) / period) + 1) * period


class Profiler:
    """Writes a row a second to `path` from `start` to `stop`.

    `sample` is called once a row, in the profiler's thread, and may raise `StoreError`: the row then lacks its
    figures.  `observe`, `observe_many` and `observe_all` may be called from any thread.  A disk that cannot take a row
    costs that row, not the node.
    """

    def __init__(self, path: Path, sample: Callable[[], Sample], *, period_s: float = 1.0) -> None:
        self._path = path
        self._sample = sample
        self._period_s = period_s
        self._lock = threading.Lock()  # guards the window
        self._window = Window()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="profiler", daemon=True)
        self._closed_at = 0.0  # monotonic, end of the last row
        self._cpu_ticks = (0, 0)  # at the end of the last row
        self._failing = False  # the last row could not be written

    def start(self) -> None:
        """Open the file and begin; raises `NodeError` if there can be no such file."""
        try:
            _prepare(self._path)
        except OSError as error:
            raise NodeError(f"{self._path}: cannot keep the profile there: {error.strerror}") from None
        self._vitals = Vitals()
        self._cpu_ticks = self._vitals.cpu_ticks()
        self._closed_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and write a last row for the part of a second that is left."""
        if self._thread.ident is None or self._stopping.is_set():  # never started, or stopped
            return
        self._stopping.set()
        self._thread.join()
        self._write_row()
        self._vitals.close()

    def observe(self, kind: End, wait_ms: int | None, run_ms: int | None) -> None:
        self.observe_many([Ended(kind, wait_ms, run_ms)])

    def observe_many(self, ended: Sequence[Ended]) -> None:
        with self._lock:
            self._window.add(ended)

    def observe_all(self, counts: Mapping[End, int], waits_ms: Sequence[int], runs_ms: Sequence[int]) -> None:
        with self._lock:
            self._window.add_all(counts, waits_ms, runs_ms)

    def _loop(self) -> None:
        start = self._closed_at
        while True:
            now = time.monotonic()
            if self._stopping.wait(next_tick(start, now, self._period_s) - now):
                return
            self._write_row()

    def _write_row(self) -> None:
        figures: dict[str, float | int | None] = {}
        try:
            sample = self._sample()
        except StoreError:
            pass  # those who need the store report that it is away; here the cells stay empty
        else:
            figures = {name: getattr(sample, name) for name in Sample.__dataclass_fields__}
        now = time.monotonic()
        with self._lock:
            # Never less than a period: the short last row would show a rate that nobody ever saw.
            figures |= self._window.close(max(now - self._closed_at, self._period_s))
        self._closed_at = now
        figures["ts_ms"] = time.time_ns() // 1_000_000
        before, self._cpu_ticks = self._cpu_ticks, self._vitals.cpu_ticks()
        figures["cpu_pct"] = cpu_percent(before, self._cpu_ticks)
        figures["rss_mb"] = self._vitals.rss_bytes() / 2**20
        try:
            _append(self._path, line_of(figures))
        except OSError as error:
            if not self._failing:
                _log.warning("rows of the profile are lost", path=str(self._path), error=error.strerror)
            self._failing = True
        else:
            self._failing = False


def _prepare(path: Path) -> None:
    """Make `path` a file that rows can be appended to: other columns go aside, a torn last line goes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()
    elif not path.is_file():
        raise OSError(0, "it is no regular file; move it away")
    with path.open("rb+") as file:
        header = file.readline()
        end = file.seek(0, os.SEEK_END)
        if header == f"{HEADER}\n".encode():
            _cut_torn_line(file.fileno(), end)
            return
    if end:
        path.rename(f"{path}.{time.time_ns() // 1_000_000}")


def _cut_torn_line(fd: int, end: int) -> None:
    tail = os.pread(fd, 4096, max(0, end - 4096))  # far longer than any row
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if 0 < torn < len(tail):
        os.ftruncate(fd, end - torn)


def _append(path: Path, line: str) -> None:
    """Add `line` by one write; the header first if the file is new.

    The file is opened for each row, so one that was deleted or rotated by others simply begins again.  A write
    that the disk took only in part is undone.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(0, "it is no regular file")
        data = (line if state.st_size else f"{HEADER}\n{line}").encode()
        if os.write(fd, data) < len(data):
            os.ftruncate(fd, state.st_size)
            raise OSError(0, "the disk took only a part of a row")
    finally:
        os.close(fd)
    if state.st_size + len(data) >= ROTATE_BYTES:
        os.replace(path, f"{path}.1")
