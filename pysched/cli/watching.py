"""Waiting for tasks with a bar, following their output, and the exit code that comes of it."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pysched.cli import table
from pysched.cli.session import Session
from pysched.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from pysched.client.results import TaskDetail

_FOLLOWED_MAX = 100  # logs at once, a connection each
_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
_TIMED_OUT = 124


def exit_code(task: Mapping[str, Any]) -> int:
    """The job's own, as a shell would give it."""
    if task["status"] == "succeeded":
        return 0
    if str(task["reason"]).startswith("timeout"):
        return _TIMED_OUT
    if task["signal"]:
        number = getattr(signal, task["signal"], None)
        return 128 + number if isinstance(number, signal.Signals) else 1
    return task["exit_code"] or 1


def wait(session: Session, ids: Sequence[str], *, timeout_s: float | None) -> int:
    """Until all have ended; the exit code of the first, in the order of `ids`, that did not succeed."""
    ended: dict[str, TaskDetail] = {}
    with _bar(session, len(ids)) as advance:
        for task in session.client.as_completed(ids, timeout_s):
            ended[task["id"]] = task
            advance(task)
    if session.is_json:
        session.document(tasks=[ended[task_id] for task_id in dict.fromkeys(ids)])
    return _verdict(session, [ended[task_id] for task_id in dict.fromkeys(ids)])


def _verdict(session: Session, tasks: Sequence[TaskDetail]) -> int:
    from pysched.cli.ls import raised

    bad = [task for task in tasks if task["status"] != "succeeded"]
    for task in bad[:20]:
        attempts = len(task["attempts"])
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        what = raised(task)
        session.note(f"{task['id']} {task['status']}: {task['reason']}{tries}{what and f': {table.printable(what)}'}")
    if len(tasks) > 1:
        session.note(f"{len(tasks) - len(bad)} of {len(tasks)} succeeded")
    return exit_code(bad[0]) if bad else 0


def _progress(*, transient: bool = False) -> Progress:
    """On standard error, beside the answer; imported only where a bar is shown, for that takes its time."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=transient,
    )


@contextmanager
def _bar(session: Session, total: int) -> Iterator[Any]:
    """A function to call with each task that has ended; shows a bar with the time left on a terminal."""
    if session.form != "table" or not sys.stderr.isatty():
        yield lambda task: None
        return
    progress = _progress(transient=total == 1)
    failed = 0
    with progress:
        bar = progress.add_task("waiting", total=total, failed="")

        def advance(task: Mapping[str, Any]) -> None:
            nonlocal failed
            failed += task["status"] != "succeeded"
            progress.update(bar, advance=1, failed=f"[red]{failed} failed[/]" if failed else "")

        yield advance


def follow(
    session: Session, ids: Sequence[str], *, streams: Sequence[str] = ("stdout", "stderr"), attempt: int | None = None
) -> int:
    """Output as it comes, until all have ended; lines of several tasks behind their ids, in colours."""
    if len(ids) > _FOLLOWED_MAX:
        raise InputError(f"{len(ids)} tasks are too many to follow at once; name up to {_FOLLOWED_MAX}")
    pieces: queue.Queue[tuple[int, str, bytes | Exception | None]] = queue.Queue(maxsize=1000)
    feeds = [(index, stream) for index in range(len(ids)) for stream in streams]
    for index, stream in feeds:
        arguments = (session, ids[index], stream, attempt, index, pieces)
        threading.Thread(target=_read, args=arguments, daemon=True).start()
    writer = _Writer(session, ids)
    open_feeds = len(feeds)
    while open_feeds:
        index, stream, piece = pieces.get()
        if piece is None:
            open_feeds -= 1
            writer.end(index, stream)
        elif isinstance(piece, Exception):
            raise piece
        else:
            writer.write(index, stream, piece)
    tasks = list(session.client.wait(ids).values())
    return _verdict(session, tasks)


def _read(
    session: Session, task_id: str, stream: str, attempt: int | None, index: int, pieces: queue.Queue[Any]
) -> None:
    try:
        for piece in session.client.logs(task_id, stream, attempt=attempt, follow=True):
            pieces.put((index, stream, piece))
        pieces.put((index, stream, None))
    except Exception as error:
        pieces.put((index, stream, error))


class _Writer:
    """Bytes of one task as they are; of several line by line, each behind its task."""

    def __init__(self, session: Session, ids: Sequence[str]) -> None:
        from pysched.cli.ls import shortened

        names = [shortened(task_id) for task_id in ids]
        width = max(map(len, names))
        self._prefixes = [
            b""
            if len(ids) == 1
            else table.paint(f"{name:<{width}} │ ", _COLOURS[i % len(_COLOURS)], colour=session.colour).encode()
            for i, name in enumerate(names)
        ]
        self._rest: dict[tuple[int, str], bytes] = {}

    def write(self, index: int, stream: str, data: bytes) -> None:
        if not self._prefixes[index]:
            emit(data, stream)
            return
        *lines, rest = (self._rest.get((index, stream), b"") + data).split(b"\n")
        self._rest[index, stream] = rest
        for line in lines:
            emit(self._prefixes[index] + line + b"\n", stream)

    def end(self, index: int, stream: str) -> None:
        rest = self._rest.pop((index, stream), b"")
        if rest:
            emit(self._prefixes[index] + rest + b"\n", stream)


def emit(data: bytes, stream: str = "stdout") -> None:
    """Bytes of a job to where they belong: its errors are no output here either."""
    target = (sys.stderr if stream == "stderr" else sys.stdout).buffer
    target.write(data)
    target.flush()


def wait_for_all(session: Session, timeout_s: float | None) -> int:
    """Until nothing is left to do, whatever is submitted meanwhile."""
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    open_states = ("blocked", "scheduled", "queued", "running")
    first = session.client.stats()["states"]
    failed_before = first.get("failed", 0) + first.get("cancelled", 0)
    with _totals(session) as show:
        while True:
            states = session.client.stats()["states"]
            left = sum(states.get(state, 0) for state in open_states)
            failed = states.get("failed", 0) + states.get("cancelled", 0) - failed_before
            show(left, failed)
            if not left:
                break
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{left} tasks have not ended after {timeout_s:g} s")
            time.sleep(min(0.25, max(0.0, deadline - time.monotonic())))
    if session.is_json:
        session.document(failed=failed)
    elif failed:
        session.note(f"{failed} failed or cancelled meanwhile; see: scheduler ls status=failed,cancelled")
    return 1 if failed else 0


@contextmanager
def _totals(session: Session) -> Iterator[Any]:
    if session.form != "table" or not sys.stderr.isatty():
        yield lambda left, failed: None
        return
    progress = _progress()
    with progress:
        bar = progress.add_task("waiting for all", total=1, failed="")
        most = 0

        def show(left: int, failed: int) -> None:
            nonlocal most
            most = max(most, left)
            text = f"[red]{failed} failed[/]" if failed else ""
            progress.update(bar, total=most or 1, completed=most - left if most else 1, failed=text)

        yield show
