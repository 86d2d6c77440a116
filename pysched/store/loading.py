"""Many new tasks at once by COPY, which costs the server a third of what the same rows cost as an INSERT.

COPY knows no ON CONFLICT.  `load` is for a caller who has looked for ids that are taken, and begins again if one has
been taken since.  `stream` looks for nothing: it takes tasks as they are read, so that the server writes rows while the
next ones are parsed, and gives up if one is there already or needs another.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import psycopg

from pysched.draft import Entry
from pysched.model import Priority, State
from pysched.store import arrays, sql
from pysched.store.database import Conn, Database, Raced

if TYPE_CHECKING:
    from pysched.store.accepting import New

LEAST = 1_000  # new tasks; below, an INSERT is as fast

_PIECE = 250  # rows handed to the driver at once
_QUERIES = sql.load("load")
_NOTIFY = sql.load("accept").notify

Loaded = list[tuple[str, State]]


class _Unsuited(Exception):
    """A task needs others, so their states decide; or an id is there already, or twice."""


def load(conn: Conn, items: Sequence[New], source: uuid.UUID) -> None:
    """Insert in the order given what needs no other task; in a transaction that is not pipelined."""
    try:
        _copy(conn, ((item.id, item.task, item.spec, item.state) for item in items), source)
    except psycopg.errors.UniqueViolation:
        raise Raced from None


def stream(database: Database, tasks: Callable[[], Iterable[Entry]], *, source: uuid.UUID) -> Loaded | None:
    """Accept new tasks, all or none, in one transaction; see `Store.accept_stream`."""

    def work(conn: Conn) -> Loaded:
        loaded: Loaded = []

        def rows() -> Iterator[tuple[str, Entry, str, State]]:
            for task in tasks():
                if task.after:
                    raise _Unsuited
                state = State.SCHEDULED if task.delay_s > 0 else State.QUEUED
                task_id = task.id or ""
                loaded.append((task_id, state))
                yield task_id, task, task.spec(), state

        try:
            _copy(conn, rows(), source)
        except psycopg.errors.UniqueViolation:
            raise _Unsuited from None
        conn.execute(_NOTIFY, {"kinds": ["due", "ready"]})
        return loaded

    try:
        return database.transaction(work, pipelined=False)
    except _Unsuited:
        return None


def _copy(conn: Conn, items: Iterator[tuple[str, Entry, str, State]], source: uuid.UUID) -> None:
    ((now,),) = conn.execute(_QUERIES.now).fetchall()
    since = now.isoformat()
    totals: Counter[Priority] = Counter()
    with conn.cursor().copy(_QUERIES.copy) as into:
        while piece := [*islice(items, _PIECE)]:
            into.write("".join([_row(*item, now, since) for item in piece]))
            totals.update(item[1].priority for item in piece)
    columns = {
        "priorities": arrays.numbers([priority.value for priority in totals]),
        "counts": arrays.numbers(totals.values()),
        "source": source,
    }
    conn.execute(_QUERIES.tally, columns)


def _row(task_id: str, task: Entry, spec: str, state: State, now: datetime, since: str) -> str:
    """In COPY's text format, where the backslash needs another: no id, name or JSON text holds a control character.
    `since` is `now` as text.

    Before `not_before` nothing makes the task ready again, and at `due_at` it is queued.
    """
    name = (task.name or task_id).replace("\\", "\\\\")
    demand = task.demand
    asked = "\\N\t\\N\t\\N" if demand is None else f"{demand.cpus}\t{demand.memory}\t{demand.gpus}"
    due_at = (now + timedelta(seconds=task.delay_s)).isoformat() if state is State.SCHEDULED else "\\N"
    return (
        f"{task_id}\t{name}\t{task.type.value}\t{task.priority.value}\t{task.rank}\t"
        + spec.replace("\\", "\\\\")
        + f"\t{state.value}\t{since}\t{due_at}\t{due_at}\t{asked}\n"
    )
