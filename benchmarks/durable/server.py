"""One PostgreSQL server for all contenders, fresh and fsynced, each round in a database of its own."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict

from pysched.store.embedded import EmbeddedServer


class Server:
    """A running server; `synchronous_commit` and `fsync` are on, all else is as pysched ships it."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database, dropped at the end of the block."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._url, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name}")
            conn.execute("CHECKPOINT")  # not within somebody's lap
        try:
            yield self._url.replace("/postgres?", f"/{name}?")
        finally:
            with psycopg.connect(self._url, autocommit=True) as conn:
                conn.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def durability(self) -> str:
        with psycopg.connect(self._url) as conn:
            names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
            values = [conn.execute(f"SHOW {name}").fetchone() for name in names]
        return ", ".join(f"{name} = {value[0]}" for name, value in zip(names, values, strict=True) if value)

    def cpu_s(self) -> float:
        return cpu_s(self._url)


def cpu_s(url: str) -> float:
    """The processor time of all the server's processes so far, those that have ended too."""
    with psycopg.connect(url) as conn:
        postmaster = psutil.Process(conn.info.backend_pid).parent()
        assert postmaster is not None
        spent = [process.cpu_times() for process in (postmaster, *postmaster.children())]
    return sum(t.user + t.system for t in spent) + spent[0].children_user + spent[0].children_system


def environment(url: str) -> dict[str, str]:
    """A connection as libpq's variables, for clients that cannot read a URL with a socket in it."""
    given = conninfo_to_dict(url)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    return {variable: str(given[name]) for name, variable in names.items()}


@contextmanager
def running() -> Iterator[Server]:
    root = Path(tempfile.mkdtemp(prefix="pysched-bench-"))
    root.chmod(0o711)  # root's server runs as another user, who must pass
    embedded = EmbeddedServer(root)
    try:
        with embedded.running() as url:
            yield Server(url)
    finally:
        embedded.destroy()
        shutil.rmtree(root)
