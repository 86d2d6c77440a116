"""Single tasks in, as fast as a commit allows: one connection that an event loop drives, without a thread.

A thread would cost four changes of context a transaction, each with a wait for the GIL, and that is more than all else
that is done for a task.  So statements are sent from the loop, and it hears of their results as of any other socket::

    closed ── insert: a thread connects and prepares ──► open ── insert ──► a flight: INSERT, NOTIFY, Sync ── commit ─┐
      ▲                                                   ▲ └──────────────────────────────────────────────────────┘
      └── an error of the connection, or silence of `SILENCE_S` ── not tried again before `RETRY_S`

It only ever says which tasks were new and are committed.  In all other cases, and whatever goes wrong, it knows
nothing, and `Store.accept` is asked: that has the patience, the words for errors and the rules for what exists already,
and may be asked about tasks that were committed after all.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from pysched.draft import Entry
from pysched.errors import StoreError
from pysched.offers import Given
from pysched.store import arrays, sql
from pysched.store.database import Database
from pysched.store.link import Link

SILENCE_S = 2.0
RETRY_S = 1.0

_QUERIES = sql.load("submit")
_log = logging.getLogger(__name__)


Created = dict[str, "Given | None"]  # new tasks; and of those that a node got, how


@dataclass(slots=True)
class _Flight:
    """A transaction under way; they come back in the order in which they were sent."""

    done: asyncio.Future[Created | None]
    created: Created = field(default_factory=dict)
    failed: bool = False


class Inserter:
    """All methods belong to one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._source = str(uuid.uuid4()).encode()  # of the totals: its own, so that it waits for no other writer's
        self._link: Link | None = None
        self._socket = -1  # its own; a link that is lost does not tell it any more
        self._flights: deque[_Flight] = deque()
        self._writing = False
        self._opening: asyncio.Task[None] | None = None
        self._again_at = 0.0
        self._closed = False

    async def insert(self, tasks: Sequence[Entry]) -> set[str] | None:
        """The ids of the tasks that were new, in one transaction that is committed; None: nobody knows.

        The tasks have ids, each another one, and need no other tasks.
        """
        created = await self._fly((b"submit", self._columns(tasks)), (b"notify_submitted", [_kinds(tasks)]))
        return None if created is None else set(created)

    async def hand_over(self, tasks: Sequence[Entry], node: str, schema: int) -> Created | None:
        """The same for tasks that ask for nothing but a worker, now, and are the node's at once if nothing else waits
        and it may claim; `schema`: the version that it knows."""
        parameters = [*_texts(_heads(tasks)), self._source, node.encode(), b"%d" % schema]
        return await self._fly((b"hand_over", parameters))

    async def _fly(self, *statements: tuple[bytes, Sequence[bytes | None]]) -> Created | None:
        """One transaction; None: nobody knows."""
        if self._link is None:
            self._open()
            return None
        loop = asyncio.get_running_loop()
        flight = _Flight(loop.create_future())
        server = self._link.pgconn
        try:
            for name, parameters in statements:
                server.send_query_prepared(name, parameters)
            server.pipeline_sync()
            self._flights.append(flight)
            self._write()
        except psycopg.Error as error:
            self._lose(str(error))
            return None
        silence = loop.call_later(SILENCE_S, self._lose, f"no answer within {SILENCE_S:g} s")
        try:
            return await flight.done
        finally:
            silence.cancel()

    async def close(self) -> None:
        """Nothing is under way any more."""
        self._closed = True
        if self._opening is not None:
            await asyncio.wait([self._opening])
        self._drop()

    # ── the connection ────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._opening is None and not self._closed and loop.time() >= self._again_at:
            self._opening = loop.create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            link = await asyncio.to_thread(self._prepare)
        except StoreError as error:
            _log.debug("no connection for submissions: %s", error)
            self._again_at = loop.time() + RETRY_S
        else:
            self._link, self._socket = link, link.fileno()
            loop.add_reader(self._socket, self._read)
        finally:
            self._opening = None

    def _prepare(self) -> Link:
        link = self._database.connect()
        try:
            with self._database.translated():
                link.execute(_QUERIES.insert, prepare=False)
                link.execute(_QUERIES.notify, prepare=False)
                link.execute(_QUERIES.hand_over, prepare=False)
                link.pgconn.enter_pipeline_mode()
        except BaseException:
            link.close()
            raise
        return link

    def _lose(self, why: str) -> None:
        _log.debug("the connection for submissions is lost: %s", why)
        self._again_at = asyncio.get_running_loop().time() + RETRY_S
        self._drop()

    def _drop(self) -> None:
        """Of what was under way nobody knows."""
        if self._link is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.remove_writer(self._socket)
            self._link.close()
            self._link, self._writing = None, False
        while self._flights:
            _land(self._flights.popleft(), None)

    # ── what goes over it ─────────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        """As much as the socket takes; the rest when it takes more."""
        assert self._link is not None  # noqa: S101 - for mypy
        loop = asyncio.get_running_loop()
        try:
            more = self._link.pgconn.flush() != 0
        except psycopg.Error as error:
            self._lose(str(error))
            return
        if more and not self._writing:
            loop.add_writer(self._socket, self._write)
        elif self._writing and not more:
            loop.remove_writer(self._socket)
        self._writing = more

    def _read(self) -> None:
        assert self._link is not None  # noqa: S101 - for mypy
        server = self._link.pgconn
        try:
            server.consume_input()
            while not server.is_busy() and self._flights:
                result = server.get_result()
                if result is None:
                    continue  # the end of one statement's results
                flight = self._flights[0]
                if result.status == ExecStatus.PIPELINE_SYNC:  # and it is committed, or rolled back
                    self._flights.popleft()
                    _land(flight, None if flight.failed else flight.created)
                elif result.status != ExecStatus.TUPLES_OK:
                    flight.failed = True
                elif result.fname(0) == b"id":
                    flight.created.update(_created(result, row) for row in range(result.ntuples))
        except psycopg.Error as error:
            self._lose(str(error))

    def _columns(self, tasks: Sequence[Entry]) -> list[bytes | None]:
        delays = arrays.numbers([task.delay_s for task in tasks])
        return [*_texts((*_heads(tasks), delays, *arrays.demands(tasks))), self._source]


def _heads(tasks: Sequence[Entry]) -> tuple[str, ...]:
    """Columns that all tasks have."""
    return (
        arrays.texts([task.id for task in tasks]),
        arrays.texts([task.name or task.id for task in tasks]),
        arrays.texts([task.type.value for task in tasks]),
        arrays.numbers([task.priority.value for task in tasks]),
        arrays.numbers([task.rank for task in tasks]),
        arrays.texts([task.spec() for task in tasks]),
    )


def _texts(columns: Iterable[str]) -> list[bytes]:
    return [column.encode() for column in columns]


def _created(result: PGresult, row: int) -> tuple[str, Given | None]:
    task_id, *given = ((result.get_value(row, column) or b"").decode() for column in range(min(result.nfields, 4)))
    if not given or not given[0]:
        return task_id, None
    token, sequence, submitted_us = map(int, given)
    return task_id, (token, sequence, submitted_us)


def _kinds(tasks: Sequence[Entry]) -> bytes:
    """What the hints say: there is something to claim, or a due time to learn of."""
    return arrays.texts(sorted({"due" if task.delay_s > 0 else "ready" for task in tasks})).encode()


def _land(flight: _Flight, created: Created | None) -> None:
    if not flight.done.done():
        flight.done.set_result(created)
