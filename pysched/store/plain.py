"""How plain ends (`csrc/plain.pyx`) are recorded: all of a batch, or none of it.

Whatever is out of the ordinary about one of them (it is no longer the caller's, its end was written by a call whose
answer was lost) sends the batch the way of `ending`, which has the rules.
"""

from __future__ import annotations

import uuid
from collections import Counter

from pysched._core import PlainEnds
from pysched.store import sql
from pysched.store.arrays import Packed
from pysched.store.database import Conn, Database
from pysched.store.ending import count, settle_arrays

_QUERIES = sql.load("plain")


class _NotAllOurs(Exception):
    pass


def finish(database: Database, ends: PlainEnds, *, node: uuid.UUID, home: uuid.UUID) -> int | None:
    """See `Store.finish_plain`."""
    columns = {name: Packed(data) for name, data in ends.columns().items()}
    tally: Counter[tuple[str, int]] = Counter(ends.tally())
    succeeded = any(state == "succeeded" for state, _ in tally)
    failed = any(state == "failed" for state, _ in tally)

    def work(conn: Conn) -> int:
        parameters = {**columns, "count": len(ends), "node": node, "home": home}
        ((batch,),) = conn.execute(_QUERIES.finish, parameters).fetchall()
        if batch is None:
            raise _NotAllOurs
        counts = Counter(tally)  # settling adds to it, and a transaction may begin again
        settle_arrays(
            conn, Packed(ends.ids(False)) if succeeded else None, Packed(ends.ids(True)) if failed else None, counts
        )
        count(conn, home, counts)
        return int(batch)

    try:
        return database.transaction(work)
    except _NotAllOurs:
        return None
