"""Several nodes on one database: draining one, and versions side by side."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pysched.model import Priority
from pysched.store import migrate
from pysched.store.store import Store
from pysched.task import Task
from tests.acceptance.conftest import DEADLINE_S, Site, wait_until

SOURCE = uuid.UUID(int=1)


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    with Store(site.database, connect_timeout_s=60) as store:
        yield store


def gate(path: Path) -> list[str]:
    """A command that runs until `path` appears."""
    return ["/bin/sh", "-c", f"until [ -e {path} ]; do sleep 0.02; done"]


def submit(store: Store, *tasks: Task) -> None:
    store.accept(tasks, source=SOURCE, atomic=True)


def status(store: Store, task_id: str) -> str:
    return str(store.get(task_id)["status"])


def held(site: Site) -> list[str]:
    """Tasks that a node holds."""
    with psycopg.connect(site.database) as conn:
        return [row[0] for row in conn.execute("SELECT id FROM pysched.tasks WHERE place = 'claimed' ORDER BY id")]


def migration(site: Site, *, additive: bool, script: str = "SELECT 1") -> None:
    """What a newer version would bring."""
    number = len(migrate.migrations()) + 1
    with psycopg.connect(site.database, autocommit=True) as conn:
        conn.execute(script)
        conn.execute(
            "INSERT INTO pysched.migrations (number, name, additive) VALUES (%s, 'newer', %s)", (number, additive)
        )


def test_a_draining_node_ends_what_runs_and_hands_back_the_rest(site: Site, store: Store) -> None:
    node = site.node(workers=1)
    go = site.root / "go"
    submit(store, Task(id="a-runs", command=gate(go)))
    wait_until(lambda: status(store, "a-runs") == "running", "the first task")
    submit(store, Task(id="b-waits", priority=Priority.HIGH, command=["/bin/true"]))
    (listed,) = store.nodes()
    store.drain(uuid.UUID(listed["incarnation"]))
    node.await_message("draining")
    wait_until(lambda: held(site) == ["a-runs"], "the second task's return")
    submit(store, Task(id="c-comes", command=["/bin/true"]))
    go.touch()
    assert site.done("a-runs")["status"] == "succeeded"
    wait_until(lambda: held(site) == [], "the end of the first task")
    assert [status(store, name) for name in ("b-waits", "c-comes")] == ["queued", "queued"]
    assert store.nodes()[0]["draining"]
    assert node.terminate() == 0
    other = site.node()  # a new incarnation is not drained
    assert {name: site.done(name)["status"] for name in ("b-waits", "c-comes")} == dict.fromkeys(
        ("b-waits", "c-comes"), "succeeded"
    )
    assert other.terminate() == 0


def test_an_older_node_works_beside_a_newer_one_through_a_migration_that_adds(site: Site, store: Store) -> None:
    before = site.node()
    migration(site, additive=True, script="ALTER TABLE pysched.tasks ADD COLUMN newer integer NOT NULL DEFAULT 0")
    submit(store, Task(id="a", command=["/bin/true"]), Task(id="b", command=["/bin/false"], max_retries=0))
    assert (site.done("a")["status"], site.done("b")["status"]) == ("succeeded", "failed")
    assert before.terminate() == 0
    after = site.node()  # started when the schema was newer already
    submit(store, Task(id="c", command=["/bin/true"]))
    assert site.done("c")["status"] == "succeeded"
    assert after.terminate() == 0


def test_an_older_node_ends_itself_at_a_migration_that_changes(site: Site, store: Store) -> None:
    node = site.node(workers=1)
    go = site.root / "go"
    submit(store, Task(id="runs", command=gate(go)))
    wait_until(lambda: status(store, "runs") == "running", "the task")
    migration(site, additive=False)
    submit(store, Task(id="waits", priority=Priority.HIGH, command=["/bin/true"]))
    node.await_message("upgrade pysched")
    go.touch()
    assert site.done("runs")["status"] == "succeeded"
    assert node.popen.wait(DEADLINE_S) == 1  # the guard starts no version again that may not work
    assert status(store, "waits") == "queued"


def test_two_nodes_of_one_host_and_name_share_the_work(site: Site, store: Store, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    other = Site(tmp_path / "two", site.database)
    try:
        nodes = [site.node(workers=1), other.node(workers=1)]
        first, second = store.nodes()
        assert first["host"] == second["host"]
        assert first["incarnation"] != second["incarnation"]
        go = site.root / "go"
        submit(store, Task(id="a", command=gate(go)), Task(id="b", command=gate(go)))
        wait_until(lambda: [status(store, name) for name in "ab"] == ["running", "running"], "one task each")
        assert {store.get(name)["node"] for name in "ab"} == {first["incarnation"], second["incarnation"]}
        go.touch()
        wait_until(lambda: len(site.done_ids()) + len(other.done_ids()) == 2, "the ends")
        assert (len(site.done_ids()), len(other.done_ids())) == (1, 1)
        assert [node.terminate() for node in nodes] == [0, 0]
    finally:
        other.close()
