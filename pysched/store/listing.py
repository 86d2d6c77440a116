"""Pages of tasks, newest first, in a bounded time whatever is asked.

A page begins below a sequence number and looks down one ordered source: all tasks, those of some states, those of a
tag, or the few whose ids begin so.  Where the source alone does not decide, the tasks are held against the other
conditions, up to `LOOKED` of them; the page then ends where the look did, perhaps with fewer tasks than asked for, and
the next begins there.  So each page costs milliseconds, without an index for each condition that every task would pay
for three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pysched.model import TERMINAL, State
from pysched.selection import Selection
from pysched.store import sql
from pysched.store.database import Conn, Database

LOOKED = 2_500  # tasks that one page may look at
_LAST = 2**63 - 1
_LONGEST = timedelta(hours=1)  # a transaction that accepts tasks: `submitted_at` is its start, `sequence` comes later

_QUERIES = sql.load("list")

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Found:
    """A page's rows, and below which sequence number the next one begins (None: there is none)."""

    rows: Rows
    next: int | None


def page(database: Database, selection: Selection, *, limit: int, before: int | None) -> Found:
    """The tasks' columns, as `views` shows them."""
    return database.read(lambda conn: find(conn, _QUERIES.select, selection, limit=limit, before=before))


def ids(database: Database, selection: Selection, *, limit: int, before: int | None) -> Found:
    """The tasks' ids and sequence numbers."""
    return database.read(lambda conn: find(conn, _QUERIES.select_ids, selection, limit=limit, before=before))


def find(conn: Conn, columns: bytes, selection: Selection, *, limit: int, before: int | None) -> Found:
    """In a transaction that sees one moment: a second statement may have to tell how far the first one looked."""
    parameters = {**_parameters(selection), "limit": limit, "looked": LOOKED, **_bounds(conn, selection, before)}
    source, conditions = _source(conn, selection, parameters)
    if not conditions:
        parameters["looked"] = limit
    where = b" WHERE " + b" AND ".join(conditions) if conditions else b""
    query = b"".join(
        (
            columns,
            b" FROM (",
            source,
            b") AS looked JOIN pysched.tasks AS t USING (sequence)",
            where,
            b" ",
            _QUERIES.order,
        )
    )
    rows = conn.execute(query, parameters).fetchall()
    if len(rows) == limit:
        return Found(rows, rows[-1][1])
    if not conditions:
        return Found(rows, None)
    reach = b"SELECT count(*), min(sequence) FROM (" + source + b") AS looked"
    ((count, lowest),) = conn.execute(reach, parameters).fetchall()
    return Found(rows, lowest if count == LOOKED else None)


def _source(conn: Conn, selection: Selection, parameters: dict[str, Any]) -> tuple[bytes, list[bytes]]:
    """Where to look, and the conditions that are left."""
    given = [name for name in _CONDITIONS if getattr(selection, name) not in (None, ())]
    if selection.id is not None and conn.execute(_QUERIES.has_few_ids, parameters).fetchall() == [(True,)]:
        given.remove("id")
        source = _QUERIES.by_id
    elif selection.tags:
        first, *others = parameters["tags"]
        parameters["tag"], parameters["tags"] = first, others
        if not others:
            given.remove("tags")
        source = _QUERIES.by_tag
    elif selection.states or selection.finished_since or selection.finished_until:
        states = selection.states or tuple(TERMINAL)
        parameters["standings"] = sorted({standing for state in states for standing in _STANDINGS[state]})
        if selection.states and (State.QUEUED in states) == (State.RUNNING in states):
            given.remove("states")
        source = _QUERIES.by_standing
    else:
        source = _QUERIES.by_sequence
    return source, [getattr(_QUERIES, name) for name in given]


def _bounds(conn: Conn, selection: Selection, before: int | None) -> dict[str, int]:
    """Sequence numbers outside of which nothing can have been submitted in time."""
    bounds = {"before": _LAST if before is None else before, "floor": 0}
    if selection.submitted_until is not None:
        bounds["before"] = min(bounds["before"], _sequence_at(conn, _shifted(selection.submitted_until, _LONGEST)))
    if selection.submitted_since is not None:
        bounds["floor"] = _sequence_at(conn, _shifted(selection.submitted_since, -_LONGEST))
    return bounds


def _sequence_at(conn: Conn, moment: datetime) -> int:
    ((sequence,),) = conn.execute(_QUERIES.sequence_at, {"moment": moment}).fetchall()
    return int(sequence)


def _shifted(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:  # the first or the last hour of the calendar
        return moment


def _parameters(selection: Selection) -> dict[str, Any]:
    values = {name: getattr(selection, name) for name in _CONDITIONS}
    values["states"] = [state.value for state in selection.states]
    values["priorities"] = [int(priority) for priority in selection.priorities]
    values["type"] = None if selection.type is None else selection.type.value
    values["tags"] = list(dict.fromkeys(selection.tags))
    if selection.id is not None:
        values["id_end"] = selection.id + "\U0010ffff"  # ids are ASCII, and compared byte by byte
    return values


_CONDITIONS: Sequence[str] = (
    "states", "priorities", "type", "tags", "id", "name", "node",
    "submitted_since", "submitted_until", "finished_since", "finished_until", "text",
)  # fmt: skip

_STANDINGS = {
    **{state: (state.value,) for state in State},
    State.QUEUED: ("ready", "claimed"),
    State.RUNNING: ("claimed",),
}
