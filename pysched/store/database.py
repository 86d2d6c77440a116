"""Connections to PostgreSQL: a pool, sessions set up for a queue, transactions that retry, errors in our words."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from pysched.errors import DatabaseDown, DatabaseReadOnly, DatabaseRefused, DatabaseUnreachable, StoreError
from pysched.store.arrays import Packed, PackedDumper
from pysched.store.link import Link, Look

Conn = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

_RETRIES = 20  # of one transaction after a deadlock, a serialization failure or a race of our own
_RECONNECT_S = 3.0  # the pool backs off no longer than this, so that work resumes soon after the server does
_KEEPALIVE = {  # notice a half-open connection within 5 s
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "2",
    "tcp_user_timeout": "5000",
}

# - An acknowledgement is durable: never below `on`, whatever the server's or the role's default.
# - Every access has its index, and the statistics lag behind a burst: a plan made while the table was small
#   must not scan it once it is large.  JIT would only see the high cost that stands for "off".  For the same
#   reason no plan depends on a parameter, so each is made once a session: planning was a third of a short statement.
# The last row is the server's process for this connection, which behind a pooler is not what the protocol says.
_SESSION = b"""
    SELECT set_config('synchronous_commit', 'on', false)
      WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')
    UNION ALL SELECT set_config('enable_seqscan', 'off', false)
    UNION ALL SELECT set_config('jit', 'off', false)
    UNION ALL SELECT set_config('plan_cache_mode', 'force_generic_plan', false)
    UNION ALL SELECT set_config('timezone', 'UTC', false)
    UNION ALL SELECT pg_backend_pid()::text
"""
_LOOK = b"SELECT state = 'active' FROM pg_stat_activity WHERE pid = %(pid)s"
_BRIEF_S = 0.5
_PROBE_S = 2.0  # for the connection that looks what the server does, and then for its answer
_REFUSALS = (os.strerror(errno.ECONNREFUSED), os.strerror(errno.ENOENT), "the database system is ")
_NOT_NOW = ("too many", "connection slots are reserved", "terminating connection")  # what else is FATAL and passes
_NOT_US = ("FATAL:", "no password supplied", "does not support SSL")


class Raced(Exception):
    """Another transaction changed what this one had read; begin again."""


class Database:
    """A pool of connections to one database.  Every method may be called from any thread."""

    def __init__(self, url: str, *, pool_size: int, connect_timeout_s: float) -> None:
        self._url = url
        self._timeout_s = connect_timeout_s
        self._brief = False
        given = _parse(url)
        self._where = _where(given)
        self._on_a_socket = _is_socket(given)
        options: dict[str, Any] = {name: value for name, value in _KEEPALIVE.items() if name not in given}
        options.setdefault("application_name", given.get("application_name") or "pysched")
        options["connect_timeout"] = max(1, round(connect_timeout_s))
        # Prepared at first use: the store has a few dozen statements and runs each again and again.
        self._options = {**options, "autocommit": True, "prepare_threshold": 0}
        self._pool: ConnectionPool[Link] = ConnectionPool(
            url,
            connection_class=Link,
            kwargs=self._options,
            min_size=1,
            max_size=pool_size,
            open=False,
            timeout=connect_timeout_s,
            reconnect_timeout=_RECONNECT_S,
            num_workers=2,
            name="pysched",
            configure=self._configure,
            check=_check,
        )

    def open(self) -> None:
        """Connect; `DatabaseUnreachable` with the server's own reason if that fails."""
        self.connect().close()  # the pool would only say that time is up
        with self._errors():
            self._pool.open(wait=True, timeout=self._timeout_s)

    def close(self) -> None:
        self._pool.close()

    def connect(self, *, limit_s: float | None = None) -> Link:
        """A connection outside the pool, the caller's to close; with `limit_s` it bears no longer silence than that."""
        with self._errors():
            timeout_s = self._options["connect_timeout"] if limit_s is None else max(1, round(limit_s))
            link = Link.connect(self._url, **{**self._options, "connect_timeout": timeout_s})
            link.limit_s = limit_s
            self._configure(link)
            return link

    @property
    def is_on_a_socket(self) -> bool:
        """Whether the URL names a Unix socket of this machine: then whoever refuses there is the server itself."""
        return self._on_a_socket

    def _configure(self, link: Link) -> None:
        limit_s = link.limit_s
        if limit_s is None:  # nothing holds this statement up, and there is no number yet to look by
            link.limit_s = self._options["connect_timeout"]
        try:
            *_, (pid,) = link.execute(_SESSION)
        except BaseException:
            link.close()
            raise
        link.adapters.register_dumper(Packed, PackedDumper)
        link.limit_s = limit_s
        link.look = self._look
        link.server_pid = int(pid)

    def _look(self, server_pid: int) -> Look:
        """What the server does for a connection that hears nothing from it."""
        options = {**self._options, "connect_timeout": round(_PROBE_S)}
        try:
            with Link.connect(self._url, **options) as probe:
                probe.limit_s = _PROBE_S
                row = probe.execute(_LOOK, {"pid": server_pid}).fetchone()
        except psycopg.OperationalError as error:
            answered = isinstance(self._translate(error), DatabaseDown) or "FATAL" in str(error)
            return Look.UNKNOWN if answered else Look.SILENT
        return Look.WORKS if row is not None and row[0] else Look.WAITS

    def execute(self, query: bytes, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of one statement, which is its own transaction: one round trip."""

        def run(conn: Conn) -> list[tuple[Any, ...]]:
            cursor = conn.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

        return self._retrying(run)

    def transaction(self, work: Callable[[Conn], T], *, pipelined: bool = True) -> T:
        """`work` in one transaction, begun again after a deadlock, a serialization failure or `Raced`.

        Statements are pipelined: they go out without waiting until a result is asked for.  COPY cannot be.
        """

        def run(conn: Conn) -> T:
            with conn.pipeline() if pipelined else nullcontext(), conn.transaction():
                return work(conn)

        return self._retrying(run)

    def read(self, work: Callable[[Conn], T]) -> T:
        """The same for statements that read and must all see one moment."""

        def run(conn: Conn) -> T:
            conn.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return work(conn)

        return self.transaction(run)

    @contextmanager
    def session(self) -> Iterator[Link]:
        """A pooled connection, in autocommit."""
        with self._errors(), self._pool.connection(_BRIEF_S if self._brief else self._timeout_s) as conn:
            yield conn

    def be_brief(self, brief: bool) -> None:
        """Whether to wait for a pooled connection only as long as a healthy server takes to give one."""
        self._brief = brief

    @contextmanager
    def translated(self) -> Iterator[None]:
        """The same translation of errors for a connection from `connect`."""
        with self._errors():
            yield

    def _retrying(self, work: Callable[[Conn], T]) -> T:
        for _ in range(_RETRIES):
            try:
                with self.session() as conn:
                    return work(conn)
            except (_Conflict, Raced):
                continue
        raise StoreError(f"{_RETRIES} transactions in a row met others on the same tasks; try again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
            raise _Conflict from error
        except psycopg.Error as error:
            if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
                raise  # a defect of ours, which trying again would only hide
            raise self._translate(error) from error

    def _translate(self, error: psycopg.Error) -> StoreError:
        if isinstance(error, PoolTimeout):
            return DatabaseUnreachable(f"PostgreSQL at {self._where} gives no connection in time")
        text = _one_line(str(error))
        return _kind(error, text)(f"PostgreSQL at {self._where}: {text}")


class _Conflict(Exception):
    """The server chose this transaction to break a deadlock, or could not serialize it."""


class Line:
    """A connection of its own for one purpose, opened at need, with a limit to each wait.  One caller at a time.

    Whatever goes wrong closes it, so a call that returns went over the same connection as the call before, unless
    that one raised.
    """

    def __init__(self, database: Database, limit_s: float) -> None:
        self._database = database
        self._limit_s = limit_s
        self._link: Link | None = None
        self._closed = False
        self._lock = threading.Lock()

    def execute(self, query: bytes, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of one statement, which is its own transaction; `DatabaseUnreachable` after at most a connect and
        an answer of `limit_s` each, and as long for a caller before."""
        if not self._lock.acquire(timeout=2 * self._limit_s):
            raise DatabaseUnreachable(f"PostgreSQL does not answer within {self._limit_s:g} s")
        try:
            if self._closed:
                raise DatabaseUnreachable("the store is closed")
            with self._database.translated():
                if self._link is None:
                    self._link = self._database.connect(limit_s=self._limit_s)
                cursor = self._link.execute(query, parameters)
                return cursor.fetchall() if cursor.description else []
        except BaseException:
            self._drop()
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def _kind(error: psycopg.Error, text: str) -> type[StoreError]:
    """Our class for an error.  One of connecting has no SQLSTATE, only its text."""
    code = error.sqlstate
    if code == "25006":  # read_only_sql_transaction
        return DatabaseReadOnly
    if not isinstance(error, psycopg.OperationalError):
        return StoreError
    if code is None:
        if any(refusal in text for refusal in _REFUSALS):
            return DatabaseDown
        passes = any(reason in text for reason in _NOT_NOW)
        return DatabaseRefused if not passes and any(reason in text for reason in _NOT_US) else DatabaseUnreachable
    # connection, shutdown, too many clients
    return DatabaseUnreachable if code.startswith(("08", "57P")) or code == "53300" else StoreError


def _check(conn: Conn) -> None:
    """Whether a pooled connection still lives, without a round trip when nothing speaks against it.

    A server that went away has closed the socket, which makes it readable; so does a notice, hence the real
    check then.
    """
    poll = select.poll()
    poll.register(conn.pgconn.socket, select.POLLIN)
    if poll.poll(0):
        ConnectionPool.check_connection(conn)


def _parse(url: str) -> dict[str, Any]:
    """The parts of a connection string; what cannot be read is not repeated, it may hold a piece of the password."""
    with suppress(psycopg.Error):
        given = conninfo_to_dict(url)
        # As of a password with an unescaped @ or : in it.
        if "@" not in str(given.get("host", "")) and str(given.get("port", "0")).replace(",", "").isdigit():
            return given
    raise DatabaseUnreachable(
        "the database URL cannot be read; use postgresql://USER:PASSWORD@HOST:PORT/NAME, with special characters as %XX"
    )


def _where(given: dict[str, Any]) -> str:
    """Host, port and database of a connection string, and nothing secret."""
    host = given.get("host") or given.get("hostaddr") or "the default socket"
    port = f":{given['port']}" if given.get("port") and not str(host).startswith("/") else ""
    name = f" (database {given['dbname']})" if given.get("dbname") else ""
    return f"{host}{port}{name}"


def _is_socket(given: dict[str, Any]) -> bool:
    host = str(given.get("host") or "")
    return host.startswith(("/", "@")) and "," not in host and not given.get("hostaddr")


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
