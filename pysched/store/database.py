"""Connections to PostgreSQL: a pool, sessions set up for a queue, transactions that retry, errors in our words."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from pysched.errors import DatabaseUnreachable, StoreError

Conn = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

# Without a handler of the application's own, the pool's warnings would go to the terminal as well as our errors.
logging.getLogger("psycopg.pool").addHandler(logging.NullHandler())

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
_SESSION = b"""
    SELECT set_config('synchronous_commit', 'on', false)
      WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')
    UNION ALL SELECT set_config('enable_seqscan', 'off', false)
    UNION ALL SELECT set_config('jit', 'off', false)
    UNION ALL SELECT set_config('plan_cache_mode', 'force_generic_plan', false)
    UNION ALL SELECT set_config('timezone', 'UTC', false)
"""


class Raced(Exception):
    """Another transaction changed what this one had read; begin again."""


class Database:
    """A pool of connections to one database.  Every method may be called from any thread."""

    def __init__(self, url: str, *, pool_size: int, connect_timeout_s: float) -> None:
        self._url = url
        self._timeout_s = connect_timeout_s
        given = _parse(url)
        self._where = _where(given)
        options: dict[str, Any] = {name: value for name, value in _KEEPALIVE.items() if name not in given}
        options.setdefault("application_name", given.get("application_name") or "pysched")
        options["connect_timeout"] = max(1, round(connect_timeout_s))
        # Prepared at first use: the store has a few dozen statements and runs each again and again.
        self._options = {**options, "autocommit": True, "prepare_threshold": 0}
        self._pool: ConnectionPool[Conn] = ConnectionPool(
            url,
            kwargs=self._options,
            min_size=1,
            max_size=pool_size,
            open=False,
            timeout=connect_timeout_s,
            reconnect_timeout=_RECONNECT_S,
            num_workers=2,
            name="pysched",
            configure=_configure,
            check=_check,
        )

    def open(self) -> None:
        """Connect; `DatabaseUnreachable` with the server's own reason if that fails."""
        self.connect().close()  # the pool would only say that time is up
        with self._errors():
            self._pool.open(wait=True, timeout=self._timeout_s)

    def close(self) -> None:
        self._pool.close()

    def connect(self) -> Conn:
        """A connection outside the pool, the caller's to close."""
        with self._errors():
            conn = psycopg.connect(self._url, **self._options)
            _configure(conn)
            return conn

    def execute(self, query: bytes, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of one statement, which is its own transaction: one round trip."""

        def run(conn: Conn) -> list[tuple[Any, ...]]:
            cursor = conn.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

        return self._retrying(run)

    def transaction(self, work: Callable[[Conn], T]) -> T:
        """`work` in one transaction, begun again after a deadlock, a serialization failure or `Raced`.

        Statements are pipelined: they go out without waiting until a result is asked for.
        """

        def run(conn: Conn) -> T:
            with conn.pipeline(), conn.transaction():
                return work(conn)

        return self._retrying(run)

    def read(self, work: Callable[[Conn], T]) -> T:
        """The same for statements that read and must all see one moment."""

        def run(conn: Conn) -> T:
            conn.execute(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return work(conn)

        return self.transaction(run)

    @contextmanager
    def session(self) -> Iterator[Conn]:
        """A pooled connection, in autocommit."""
        with self._errors(), self._pool.connection() as conn:
            yield conn

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
            return DatabaseUnreachable(f"PostgreSQL at {self._where} does not answer within {self._timeout_s:g} s")
        text = _one_line(str(error))
        code = error.sqlstate
        away = isinstance(error, psycopg.OperationalError) and (
            code is None or code.startswith(("08", "57P")) or code == "53300"  # connection, shutdown, too many clients
        )
        kind = DatabaseUnreachable if away else StoreError
        return kind(f"PostgreSQL at {self._where}: {text}")


class _Conflict(Exception):
    """The server chose this transaction to break a deadlock, or could not serialize it."""


def _configure(conn: Conn) -> None:
    conn.execute(_SESSION)


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


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
