"""The connection itself: what is said when there is none, and life after one was lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pysched.errors import DatabaseRefused, DatabaseUnreachable, StoreError
from pysched.model import LISTENING, State
from pysched.selection import EVERYTHING
from pysched.store.store import Store
from tests.integration.store_driver import SOURCE, Node, accept, await_blocked, begin, outcome, states, task


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def unreachable(url: str, *, refused: bool = False, **options: float) -> str:
    store = Store(url, **options)  # type: ignore[arg-type]
    with pytest.raises(DatabaseUnreachable) as caught:
        store.open()
    assert isinstance(caught.value, DatabaseRefused) == refused  # it is of no use to try again
    text = str(caught.value)
    assert "\n" not in text
    assert "s3cret" not in text
    return text


class TestUnreachable:
    def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        text = unreachable(f"postgresql://me:s3cret@127.0.0.1:{port}/tasks")
        assert f"127.0.0.1:{port} (database tasks)" in text
        assert "refused" in text

    def test_no_socket(self, tmp_path: object) -> None:
        assert str(tmp_path) in unreachable(f"postgresql:///tasks?host={tmp_path}&password=s3cret&user=me")

    def test_nobody_answers(self, silent_port: int) -> None:
        text = unreachable(f"postgresql://me:s3cret@127.0.0.1:{silent_port}/tasks", connect_timeout_s=1)
        assert f"127.0.0.1:{silent_port}" in text
        assert "timeout" in text

    def test_no_such_database(self, database_url: str) -> None:
        assert "nothing_here" in unreachable(database_url.replace("/test_", "/nothing_here_"), refused=True)

    def test_wrong_password(self, database_url: str) -> None:
        text = unreachable(make_conninfo(database_url, password="s3cret"), refused=True)
        assert "password authentication failed" in text
        assert "no password supplied" in unreachable(make_conninfo(database_url, password=""), refused=True)

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://me:x@host:s3cret/",
            "postgresql://me:x@s3cret@host/",
            "postgresql://me:s3cret%zz@host/",
            "host=h passwort=s3cret",
            "s3cret",
        ],
    )
    def test_no_connection_string(self, url: str) -> None:
        with pytest.raises(DatabaseUnreachable) as caught:
            Store(url)
        assert "postgresql://USER:PASSWORD@HOST:PORT/NAME" in str(caught.value)
        assert "s3cret" not in str(caught.value)


OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def terminate_all(url: str) -> None:
    """Not by the function's own time to wait: it asks for the pid, which another process may have by then."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"SELECT pg_terminate_backend(pid) {OTHERS}")
        deadline = time.monotonic() + 60
        while conn.execute(f"SELECT {OTHERS}").fetchone() is not None:
            assert time.monotonic() < deadline, "the backends did not end"


def test_connections_that_the_server_closed_are_replaced_unseen(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    terminate_all(store_url)
    assert [row["id"] for row in store.page(EVERYTHING, limit=1).rows] == ["a"]
    terminate_all(store_url)
    assert accept(store, task("b"))[0].created


def test_a_connection_that_breaks_in_the_middle_is_told(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node = Node(store)
    errors: list[Exception] = []

    def claim() -> None:
        try:
            store.cancel("a")
        except StoreError as error:
            errors.append(error)

    with psycopg.connect(store_url) as other, psycopg.connect(store_url, autocommit=True) as killer:
        other.execute("SELECT FROM pysched.tasks FOR UPDATE")
        waiting = begin(claim)
        victim = None
        while victim is None:
            victim = killer.execute("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
        killer.execute("SELECT pg_terminate_backend(%s)", victim)
        waiting.join()
    (error,) = errors
    assert isinstance(error, DatabaseUnreachable)
    assert len(node.claim()) == 1  # nothing was written, and the store works on


def test_a_refusal_of_the_server_is_no_lost_connection(store: Store, store_url: str) -> None:
    with psycopg.connect(store_url, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        with Store(store_url) as readonly, pytest.raises(StoreError, match="read-only") as caught:
            readonly.set_paused(True)
        assert not isinstance(caught.value, DatabaseUnreachable)
    finally:
        with psycopg.connect(store_url, autocommit=True) as conn:
            conn.execute("SET default_transaction_read_only = off")
            conn.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


def test_a_closed_store_says_so(store_url: str) -> None:
    store = Store(store_url)
    store.open()
    store.close()
    with pytest.raises(DatabaseUnreachable, match="closed"):
        store.ping()


def test_acknowledgements_are_durable_whatever_the_default(store: Store, store_url: str) -> None:
    with psycopg.connect(store_url, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    try:
        with Store(store_url) as durable, durable._database.session() as session:
            assert session.execute("SHOW synchronous_commit").fetchone() == ("on",)
    finally:
        with psycopg.connect(store_url, autocommit=True) as conn:
            conn.execute(f"ALTER DATABASE {name} RESET synchronous_commit")


def test_no_plan_scans_a_table_because_it_was_small_when_the_plan_was_made(store: Store, store_url: str) -> None:
    accept(store, *(task(f"t{number}") for number in range(3)))
    query = "EXPLAIN SELECT FROM pysched.tasks WHERE place = 'ready'"
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute("ANALYZE pysched.tasks")
        assert "Seq Scan" in str(conn.execute(query).fetchall())
    with store._database.session() as session:
        assert "tasks_ready" in str(session.execute(query).fetchall())


def test_the_victim_of_a_deadlock_begins_again(store: Store, store_url: str) -> None:
    accept(store, task("a"), task("b", after=["a"]))
    with psycopg.connect(store_url) as other:
        other.execute("SET LOCAL deadlock_timeout = '1h'")  # so that it is the store's transaction that gives way
        other.execute("SELECT FROM pysched.tasks WHERE id = 'b' FOR UPDATE")
        cancelling = begin(lambda: store.cancel("a"))  # locks a, then waits for b
        await_blocked(store_url)
        other.execute("SELECT FROM pysched.tasks WHERE id = 'a' FOR UPDATE")
        other.commit()
        cancelling.join()
    assert states(store, "a", "b") == ["cancelled", "cancelled"]
    assert store.stats()["states"]["cancelled"] == 2


class TestNotifications:
    def test_are_heard(self, store: Store, store_url: str) -> None:
        assert list(store.notifications(0.01)) == [LISTENING]  # from now on
        with Store(store_url) as other:
            accept(other, task("a"))
            node = Node(other)
            node.start(node.key())
            other.cancel("a")
        heard = list(store.notifications(30))
        if len(heard) == 1:  # the second one was on its way
            heard += store.notifications(30)
        assert heard == ["ready", "cancel"]

    def test_only_of_what_others_can_use(self, store: Store) -> None:
        assert list(store.notifications(0.01)) == [LISTENING]
        accept(store, task("later", delay_s=99.0))
        assert list(store.notifications(30)) == ["due"]
        accept(store, task("blocked", after=["later"]))
        assert list(store.notifications(30)) == ["due"]  # it locked `later`, which a promotion may have passed over
        accept(store, task("behind", after=["blocked"]))
        assert list(store.notifications(30)) == ["accepted"]
        store.cancel("later")
        store.set_paused(False)
        store.accept([task("end")], source=SOURCE, atomic=False)
        assert next(iter(store.notifications(30))) == "ready"
        assert list(store.notifications(0.05)) == []

    def test_of_a_task_that_is_handed_back(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        key = node.key()
        assert list(store.notifications(0.01)) == [LISTENING]
        node.finish(outcome(key, state=State.CANCELLED, next_state=State.QUEUED, reason="shutdown", counts=False))
        assert next(iter(store.notifications(30))) == "ready"

    def test_are_heard_again_after_the_connection_was_lost(self, store: Store, store_url: str) -> None:
        assert list(store.notifications(0.01)) == [LISTENING]
        terminate_all(store_url)
        with pytest.raises(DatabaseUnreachable):
            list(store.notifications(30))
        assert list(store.notifications(0.01)) == [LISTENING]
        accept(store, task("a"))
        assert next(iter(store.notifications(30))) == "ready"

    def test_close_waits_for_the_listener(self, store_url: str) -> None:
        store = Store(store_url)
        store.open()
        listening = threading.Event()

        def listen() -> None:
            for _ in range(3):
                list(store.notifications(0.05))
                listening.set()

        thread = begin(listen)
        assert listening.wait(30)
        thread.join()
        store.close()
