"""Brings a database to this version's schema.

Migrations are files `migrations/NNNN_name.sql`, numbered from 1 without gaps, never changed once released.
The first line of each says `-- additive: yes` or `no`: an additive one leaves everything that older code reads
and writes in place (a new table, a new column with a default, a new index), so that nodes of two versions
work side by side.  A database with migrations this code does not know is accepted if all of those are additive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from pysched.errors import StoreError
from pysched.store.database import Conn

_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")
_LOCK = 0x7079_7363_6865_6401  # "pysched", 1: the advisory lock that one migrating process holds
_OLDEST = 14  # major version of PostgreSQL


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    additive: bool
    script: bytes


def migrations() -> list[Migration]:
    """All that this version knows, in order."""
    found = sorted(_read(), key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("migrations are not numbered 1, 2, 3 …")
    return found


def _read() -> Iterator[Migration]:
    for entry in resources.files("pysched.store.migrations").iterdir():
        match = _FILE.match(entry.name)
        if match:
            script = entry.read_bytes()
            header = re.match(rb"-- additive: (yes|no)\n", script)
            if header is None:
                raise ValueError(f"{entry.name} does not start with '-- additive: yes' or 'no'")
            yield Migration(int(match[1]), match[2], header[1] == b"yes", script)


def migrate(conn: Conn, known: list[Migration]) -> None:
    """Apply what is missing, each migration in a transaction of its own; processes that start together take turns."""
    _check_server(conn)
    conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
    try:
        if conn.execute("SELECT to_regclass('pysched.migrations')").fetchone() == (None,):
            _create_ledger(conn)
        rows = conn.execute("SELECT number, additive FROM pysched.migrations").fetchall()
        applied: dict[int, bool] = dict(rows)
        newest = len(known)
        if any(number > newest and not additive for number, additive in applied.items()):
            raise StoreError(superseded(max(applied), newest))
        for migration in known:
            if migration.number not in applied:
                _apply(conn, migration)
    finally:
        if not conn.broken:
            conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def superseded(version: int, known: int) -> str:
    """Why code that knows less than the schema has may not use it."""
    return (
        f"the database's schema is version {version}, this pysched knows {known}; "
        "upgrade pysched, or use another database"
    )


def _check_server(conn: Conn) -> None:
    if conn.info.server_version < _OLDEST * 10_000:
        raise StoreError(
            f"the server is PostgreSQL {conn.info.server_version // 10_000}; it must be {_OLDEST} or newer"
        )
    encoding = conn.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreError(f"the database's encoding is {encoding}; create one with ENCODING 'UTF8' TEMPLATE template0")


def _create_ledger(conn: Conn) -> None:
    with conn.transaction():
        # Apart from each other: creating an existing schema needs a right on the database even with IF NOT EXISTS.
        if conn.execute("SELECT to_regnamespace('pysched')").fetchone() == (None,):
            conn.execute("CREATE SCHEMA pysched")
        conn.execute(
            "CREATE TABLE pysched.migrations (number integer PRIMARY KEY, name text NOT NULL,"
            " additive boolean NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )


def _apply(conn: Conn, migration: Migration) -> None:
    with conn.transaction():
        conn.execute(migration.script, prepare=False)  # several statements
        conn.execute(
            "INSERT INTO pysched.migrations (number, name, additive) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.additive),
        )
