"""Hearing what becomes of tasks, for as long as somebody wants to.

The table `changes` gets a row for each statement that changed tasks, while a row in `watches` says that somebody reads
them.  A reader remembers the snapshot of its last reading, and asks for what was committed since: exact, whatever the
order in which transactions that overlap commit, and valid in another connection and another process as well.
"""

from __future__ import annotations

import os
import select
import time
import uuid

from pysched.changes import Position, Reading
from pysched.store import sql
from pysched.store.database import Conn, Database

WATCH_S = 30.0  # a watch that is not renewed ends after this long
KEPT_S = 300.0  # how far back one may read
MOST_ROWS = 500  # of one reading; more is no news any more

_QUERIES = sql.load("control")


class Watcher:
    """One process's ear.  `listen` and `hush` belong to its thread and to whoever ends it; the rest to any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._id = uuid.uuid4()
        self._listener: Conn | None = None
        self._hushed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def watch(self) -> int:
        """Have changes written for `WATCH_S`; since when they have been, without a gap, in ms since the epoch."""
        ((since,),) = self._database.execute(_QUERIES.watch, {"watcher": self._id, "watch_s": WATCH_S})
        return int(since)

    def unwatch(self) -> None:
        self._database.execute(_QUERIES.unwatch, {"watcher": self._id})
        self._disconnect()

    def read(self, since: Position | None) -> Reading:
        """What came since an earlier reading; with None, where to begin."""
        parameters = {"since": None if since is None else since.snapshot, "limit": MOST_ROWS}
        rows = self._database.execute(_QUERIES.changes, parameters)
        snapshot, ms, _ = rows[0]
        lists = [row[2] for row in rows if row[2] is not None]
        return Reading(Position(ms, snapshot), lists, len(rows) < MOST_ROWS)

    def forget(self) -> None:
        """Delete what nobody may ask for any more."""
        self._database.execute(_QUERIES.forget_changes, {"kept_s": KEPT_S})

    def standings(self, ids: list[str]) -> dict[str, tuple[str, int]]:
        """State and number of attempts of tasks; those that there are not are left out."""
        rows = self._database.execute(_QUERIES.standings, {"ids": ids})
        return {task_id: (state, attempts) for task_id, state, attempts in rows}

    def listen(self, timeout_s: float) -> None:
        """Until something was written, `hush` was called, or the time is over."""
        with self._database.translated():
            try:
                if self._listener is None:
                    self._listener = self._database.connect()
                    self._listener.execute("LISTEN pysched_changes")
                readable = select.poll()
                readable.register(self._listener.pgconn.socket, select.POLLIN)
                readable.register(self._hushed, select.POLLIN)
                deadline = time.monotonic() + timeout_s
                while (left := deadline - time.monotonic()) > 0:
                    if self._hushed in dict(readable.poll(left * 1000)):
                        os.eventfd_read(self._hushed)
                        return
                    if any(True for _ in self._listener.notifies(timeout=0)):
                        return
            finally:
                if self._listener is not None and self._listener.broken:
                    self._disconnect()

    def hush(self) -> None:
        """End `listen`, now or when it is called next."""
        os.eventfd_write(self._hushed, 1)

    def close(self) -> None:
        """After the last `listen`."""
        self._disconnect()
        os.close(self._hushed)

    def _disconnect(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
