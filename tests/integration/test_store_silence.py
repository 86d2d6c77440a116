"""A server that is reached and says nothing: noticed by whoever waits, while a slow one is waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from pysched.errors import DatabaseReadOnly, DatabaseUnreachable, StoreError
from pysched.store import link
from pysched.store.store import Store
from tests.integration.store_driver import DEADLINE_S, Node, accept, await_blocked, begin, states, task
from tests.proxy import Proxy, proxied


@pytest.fixture
def store_url(database_url: str) -> str:
    """On one version: what is tested here is the client's side."""
    return database_url


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url, connect_timeout_s=60) as store:
        yield store


@pytest.fixture
def proxy(store_url: str) -> Iterator[Proxy]:
    with proxied(store_url) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: Proxy) -> Iterator[Store]:
    with Store(proxy.url, connect_timeout_s=60) as far:
        yield far
        proxy.speak()  # else closing waits for the pool, which tries to connect


def error_of(thread_errors: list[StoreError], thread: threading.Thread) -> StoreError:
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "it waits for ever"
    (error,) = thread_errors
    return error


def test_a_server_that_fell_silent_is_noticed_and_found_again(store: Store, far: Store, proxy: Proxy) -> None:
    node = Node(far)
    accept(far, task("a"))
    far.ping()
    proxy.silence()
    for asking in (far.ping, lambda: far.renew(node.incarnation, 60, running=0), lambda: node.claim()):
        with pytest.raises(DatabaseUnreachable):
            asking()
    proxy.speak()
    far.ping()
    assert far.renew(node.incarnation, 60, running=0) is not None
    assert [claim.key.id for claim in node.claim()] == ["a"]


def test_a_wait_that_began_before_the_silence_ends_too(store: Store, far: Store, proxy: Proxy, store_url: str) -> None:
    accept(store, task("a"))
    errors: list[StoreError] = []

    def cancel() -> None:
        try:
            far.cancel("a")
        except StoreError as error:
            errors.append(error)

    with psycopg.connect(store_url) as other:
        other.execute("SELECT FROM pysched.tasks FOR UPDATE")
        waiting = begin(cancel)
        await_blocked(store_url)
        proxy.silence()
        assert "does not answer" in str(error_of(errors, waiting))


def test_a_server_that_falls_silent_while_a_session_begins_is_noticed(proxy: Proxy) -> None:
    """It has let us in, and does not answer the first statement."""
    proxy.lose_answer_to(b"pg_backend_pid")
    far = Store(proxy.url, connect_timeout_s=2)
    errors: list[StoreError] = []

    def open_it() -> None:
        try:
            far.open()
        except DatabaseUnreachable as error:
            errors.append(error)

    assert error_of(errors, begin(open_it))


def test_an_answer_that_was_lost_is_noticed_though_the_server_lives(store: Store, far: Store, proxy: Proxy) -> None:
    accept(store, task("a"))
    node = Node(far)
    errors: list[StoreError] = []
    looked = threading.Event()

    def claim() -> None:
        try:
            node.claim()
        except StoreError as error:
            errors.append(error)

    def look(pid: int) -> link.Look:
        looked.set()
        return store._database._look(pid)  # another way to the same server, as a proxy that lost this flow alone

    with far._database.session() as session:
        session.look = look
        pid = session.server_pid
    assert pid
    proxy.silence()
    waiting = begin(claim)
    assert "nothing to do for us" in str(error_of(errors, waiting))
    assert looked.is_set()


def test_a_slow_statement_is_waited_for(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(store, task("a"))
    looks: list[link.Look] = []
    look = store._database._look
    enough = threading.Event()

    def counted(pid: int) -> link.Look:
        looks.append(look(pid))
        if len(looks) == 4:
            enough.set()
        return looks[-1]

    with store._database.session() as session:
        session.look = counted
    monkeypatch.setattr(link, "SILENCE_S", 0.3)
    monkeypatch.setattr(link, "_BETWEEN_LOOKS_S", 0.0)
    with psycopg.connect(store_url) as other:
        other.execute("SELECT FROM pysched.tasks FOR UPDATE")
        waiting = begin(lambda: store.cancel("a"))
        assert enough.wait(DEADLINE_S)
        other.commit()
        waiting.join(DEADLINE_S)
    assert set(looks[:4]) == {link.Look.WORKS}
    assert states(store, "a") == ["cancelled"]


def test_a_server_that_takes_no_writes_says_so(store: Store, store_url: str) -> None:
    with psycopg.connect(store_url, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        with Store(store_url) as readonly:
            with pytest.raises(DatabaseReadOnly):
                readonly.ping()
            with pytest.raises(DatabaseReadOnly):
                readonly.set_paused(True)
    finally:
        with psycopg.connect(store_url, autocommit=True) as conn:
            conn.execute("SET default_transaction_read_only = off")
            conn.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
