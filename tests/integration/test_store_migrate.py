"""The schema: made, made again, made by several at once, and newer than the code."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pysched.errors import StoreError
from pysched.store import migrate
from pysched.store.migrate import Migration
from pysched.store.store import Store
from tests.database import Server
from tests.integration.store_driver import at_once


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with server.empty_database() as url:
        yield url


def tables(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        return [
            name for (name,) in conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'pysched' ORDER BY 1")
        ]


def apply(url: str, *known: Migration) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        migrate.migrate(conn, list(known))


def test_twice_is_once(url: str) -> None:
    with Store(url) as store:
        store.migrate()
        store.migrate()
        assert store.stats()["submitted"] == 0
    assert "tasks" in tables(url)


def test_by_many_at_once(url: str) -> None:
    def start() -> None:
        with Store(url, connect_timeout_s=60) as store:
            store.migrate()

    at_once(*[start] * 6)
    with psycopg.connect(url) as conn:
        applied = conn.execute("SELECT number FROM pysched.migrations ORDER BY 1").fetchall()
    assert applied == [(migration.number,) for migration in migrate.migrations()]


def test_a_failed_migration_leaves_what_was_before_it(url: str) -> None:
    good = Migration(1, "good", True, b"CREATE TABLE pysched.one (); CREATE TABLE pysched.two ();")
    bad = Migration(2, "bad", True, b"CREATE TABLE pysched.three (); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        apply(url, good, bad)
    assert tables(url) == ["migrations", "one", "two"]
    apply(url, good, Migration(2, "better", True, b"CREATE TABLE pysched.three ();"))
    assert tables(url) == ["migrations", "one", "three", "two"]


def test_a_newer_schema_is_refused_unless_it_only_adds(url: str) -> None:
    first = Migration(1, "first", False, b"CREATE TABLE pysched.one ();")
    adds = Migration(2, "adds", True, b"CREATE TABLE pysched.two ();")
    changes = Migration(3, "changes", False, b"DROP TABLE pysched.one;")
    apply(url, first, adds)
    apply(url, first)
    apply(url, first, adds, changes)
    with pytest.raises(StoreError, match="the database's schema is version 3, this pysched knows 2; upgrade pysched"):
        apply(url, first, adds)


def test_a_schema_made_by_the_administrator_is_used(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE SCHEMA pysched")
    with Store(url) as store:
        store.migrate()
        store.ping()


def test_another_encoding_is_refused(server: Server) -> None:
    with server.empty_database() as url, psycopg.connect(url, autocommit=True) as conn:
        name = f"{conn.info.dbname}_latin"
        by_libc = "LOCALE_PROVIDER libc" if conn.info.server_version >= 150000 else ""  # 14 has no other
        conn.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 {by_libc} LOCALE 'C'")
        try:
            with (
                Store(url.replace(conn.info.dbname, name)) as store,
                pytest.raises(StoreError, match="encoding is LATIN1"),
            ):
                store.migrate()
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_known_migrations_are_in_order() -> None:
    numbers = [migration.number for migration in migrate.migrations()]
    assert numbers == sorted(set(numbers))
