"""Databases for tests: real servers, started once a session, and an empty migrated database for each test.

`database_url`      a database on the server that pysched itself would use
`new_database`      the same as often as a test or a wider fixture asks, dropped at the end of the block
`store`             an open, empty store, on every PostgreSQL that this machine has or `make test-versions` names
`store_url`         its database, the same for all tests and emptied before each: ten times faster than a new one
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from pysched.store import binaries
from pysched.store.binaries import Binaries
from pysched.store.embedded import EmbeddedServer
from pysched.store.store import Store

_FURTHER = os.environ.get("PYSCHED_TEST_POSTGRES", "").split()  # `bin` folders, of `make test-versions`


def _programs() -> Iterator[Binaries]:
    yield from binaries.available()
    for folder in _FURTHER:
        found = binaries.at(Path(folder))
        if found is None:
            raise RuntimeError(f"PYSCHED_TEST_POSTGRES: {folder} has no PostgreSQL that runs and is new enough")
        yield found


PROGRAMS: dict[int, Binaries] = {}
for each in _programs():
    PROGRAMS.setdefault(each.major, each)

NewDatabase = Callable[[], AbstractContextManager[str]]


class Server:
    """A running server with a migrated database to copy, and one for all tests that empty it first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._shared = self._url_of("pysched_shared")
        with psycopg.connect(url, autocommit=True) as conn:
            # These databases need not survive a power cut, only their tests; saves most of the time.
            conn.execute("ALTER SYSTEM SET fsync = off")
            conn.execute("SELECT pg_reload_conf()")
            conn.execute("CREATE DATABASE pysched_template")
            with Store(self._url_of("pysched_template"), connect_timeout_s=60) as store:
                store.migrate()
            conn.execute("CREATE DATABASE pysched_shared TEMPLATE pysched_template")

    def emptied(self) -> str:
        """The database that tests use one after the other, without rows."""
        with psycopg.connect(self._shared, autocommit=True) as conn:
            tables = conn.execute(
                "SELECT string_agg(format('pysched.%I', tablename), ', ') FROM pg_tables"
                " WHERE schemaname = 'pysched' AND tablename NOT IN ('migrations', 'control')"
            ).fetchone()
            assert tables is not None
            conn.execute(f"TRUNCATE {tables[0]} RESTART IDENTITY")
            conn.execute("UPDATE pysched.control SET paused = DEFAULT")
        return self._shared

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """One without our schema."""
        with self._database("template1") as url:
            yield url

    @contextmanager
    def new_database(self) -> Iterator[str]:
        with self._database("pysched_template") as url:
            yield url

    def _url_of(self, name: str) -> str:
        return self._url.replace("/postgres?", f"/{name}?")

    @contextmanager
    def _database(self, template: str) -> Iterator[str]:
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self._url, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self._url_of(name)
        finally:
            with psycopg.connect(self._url, autocommit=True) as conn:
                conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def open_home() -> Iterator[Path]:
    """A folder that the user of root's server can pass through too, which pytest's are not; short, for the socket."""
    home = Path(tempfile.mkdtemp(prefix="pysched-"))
    try:
        home.chmod(0o711)
        yield home
    finally:
        shutil.rmtree(home)


class Servers:
    """Those of a session, each started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[int, Server] = {}

    def get(self, major: int) -> Server:
        if major not in self._running:
            home = self._stack.enter_context(open_home())
            embedded = EmbeddedServer(home, programs=PROGRAMS[major])
            self._stack.callback(embedded.destroy)
            self._running[major] = Server(self._stack.enter_context(embedded.running()))
        return self._running[major]


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(scope="session")
def new_database(servers: Servers) -> NewDatabase:
    return servers.get(next(iter(PROGRAMS))).new_database


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    with new_database() as url:
        yield url


@pytest.fixture(params=list(PROGRAMS), ids=lambda major: f"pg{major}")
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    major: int = request.param
    return servers.get(major)


@pytest.fixture
def store_url(server: Server) -> str:
    return server.emptied()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url, pool_size=8, connect_timeout_s=60) as store:  # patient: the machine may be busy
        yield store
