"""Removing tasks that ended long ago, with their attempts and dependencies, a bounded batch at a time."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from pysched.store import arrays, sql
from pysched.store.database import Conn, Database

_QUERIES = sql.load("retention")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one batch did."""

    tasks: int  # removed
    logs: list[str]  # paths that nothing in the store names any more
    next: int | None  # where to go on; None: the pass is over


def prune(database: Database, *, home: uuid.UUID, retention_s: float, after: int, limit: int) -> Pruned:
    """See `Store.prune`."""

    def work(conn: Conn) -> Pruned:
        columns = {"home": home, "retention_s": retention_s, "after": after, "limit": limit}
        ((ids, succeeded, looked, last, recent),) = conn.execute(_QUERIES.expired, columns).fetchall()
        logs: list[str] = []
        if ids:
            gone = {"ids": arrays.texts(ids), "succeeded": arrays.texts(succeeded)}
            logs = [path for (path,) in conn.execute(_QUERIES.remove, gone)]
        over = looked < limit or recent
        if over:
            conn.execute(_QUERIES.forget_nodes, {"retention_s": retention_s})
        return Pruned(len(ids), logs, None if over else last)

    return database.transaction(work)
