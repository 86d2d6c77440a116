"""Cancelling and retrying many tasks: a page of a selection at a time, in transactions of a few hundred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pysched.errors import InputError, NotFoundError
from pysched.model import State
from pysched.selection import Cancelled, Retried, Selection
from pysched.store import ending, listing, sql
from pysched.store.database import Conn, Database

BATCH = 250  # of one transaction: how long its locks can hold up a finish

_QUERIES = sql.load("control")


def cancel(database: Database, selection: Selection, *, limit: int, before: int | None) -> Cancelled:
    """See `Control.cancel_many`."""
    found = listing.ids(database, selection, limit=limit, before=before)
    total = Cancelled(next=found.next)
    ids = [row[0] for row in found.rows]
    for start in range(0, len(ids), BATCH):
        part = _cancel(database, ids[start : start + BATCH])
        total.cancelled += part.cancelled
        total.requested += part.requested
        total.unchanged += part.unchanged
    return total


def retry(database: Database, selection: Selection, *, limit: int, before: int | None) -> Retried:
    """See `Control.retry_many`."""
    found = listing.ids(database, selection, limit=limit, before=before)
    total = Retried(next=found.next)
    # Older ones first: a task can only run again once what it needs can.
    for task_id, _ in reversed(found.rows):
        try:
            ending.retry(database, task_id)
            total.retried += 1
        except (InputError, NotFoundError) as error:
            total.refused.append((task_id, str(error)))
    return total


def _cancel(database: Database, ids: Sequence[str]) -> Cancelled:
    def work(conn: Conn) -> Cancelled:
        rows = conn.execute(_QUERIES.lock_many, {"ids": ids}).fetchall()
        claimed = [task_id for task_id, place, _ in rows if place == "claimed"]
        waiting = {task_id: priority for task_id, place, priority in rows if place not in {"claimed", "ended"}}
        if claimed:
            conn.execute(_QUERIES.request_cancel, {"ids": claimed})
        if waiting:
            conn.execute(_QUERIES.cancel_waiting, {"ids": list(waiting)})
            tally = Counter((State.CANCELLED.value, priority) for priority in waiting.values())
            ending.settle(conn, [(task_id, State.CANCELLED) for task_id in waiting], tally)
            ending.count(conn, None, tally)
        return Cancelled(len(waiting), len(claimed), len(rows) - len(waiting) - len(claimed))

    return database.transaction(work)
