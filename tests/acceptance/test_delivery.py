"""Files between nodes and crashes: each `.task` is taken once, and a `.done` that a crash left out is written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from .conftest import Site, wait_until

FILES = 400


@pytest.fixture
def neighbour(site: Site, tmp_path: Path) -> Iterator[Site]:
    """A node's home and completed folder of its own, on the queue folder and the database of `site`."""
    root = tmp_path / "neighbour"
    root.mkdir()
    other = Site(root, site.database)
    other.queue.rmdir()
    other.queue = site.queue
    try:
        yield other
    finally:
        other.close()


def drop(site: Site, number: int, ledger: Path) -> None:
    """In the one format or the other; the job writes down that it ran."""
    name = f"job-{number:03d}"
    command = f"echo {name} >> {ledger}"
    site.drop(name, {"command": command} if number % 2 else f"# by hand\nid: {name}\ncommand: {command}\n")


def test_two_nodes_on_one_queue_folder_take_each_file_once(site: Site, neighbour: Site) -> None:
    ledger = site.root / "ledger"
    for number in range(FILES // 2):  # both find these when they start
        drop(site, number, ledger)
    first = site.start("run", "--workers", "4", "--queue", str(site.queue), "--completed", str(site.completed))
    second = neighbour.node()
    first.await_message("ready")
    for number in range(FILES // 2, FILES):  # both are told of these
        drop(site, number, ledger)
    names = [f"job-{number:03d}" for number in range(FILES)]
    wait_until(lambda: len(site.done_ids()) + len(neighbour.done_ids()) >= FILES, "the ends")
    wait_until(lambda: os.listdir(site.queue) == [], "an empty queue folder")
    assert (first.terminate(), second.terminate()) == (0, 0)
    assert Counter(site.done_ids() + neighbour.done_ids()) == Counter(names)
    assert Counter(ledger.read_text().split()) == Counter(names)
    assert not site.rejected.exists() or os.listdir(site.rejected) == []
    with psycopg.connect(site.database) as connection:
        rows = connection.execute("SELECT state, attempts, count(*) FROM pysched.tasks GROUP BY 1, 2").fetchall()
    assert rows == [("succeeded", 1, FILES)]
    assert "Traceback" not in first.messages + second.messages


def state(site: Site, task_id: str) -> str | None:
    with psycopg.connect(site.database) as connection:
        row = connection.execute("SELECT state FROM pysched.tasks WHERE id = %s", [task_id]).fetchone()
    return None if row is None else str(row[0])


@pytest.mark.parametrize("crash", [True, False], ids=["after a crash", "without one"])
def test_a_done_file_that_could_not_be_written_is_written_later(site: Site, crash: bool) -> None:
    """What is between the commit and the file: here its place is taken, and nodes may die meanwhile."""
    place = site.completed / "job.done"
    place.mkdir(parents=True)
    node = site.node()
    site.drop("job", {"command": "exit 3", "max_retries": 0})
    wait_until(lambda: state(site, "job") == "failed", "the end to be committed")
    node.await_message(".done files wait")
    if crash:
        node.kill()
    place.rmdir()
    if crash:
        node = site.node()
    record = site.done("job")
    assert (record["status"], record["reason"], record["attempts"]) == ("failed", "exit 3", 1)
    assert node.terminate() == 0
    with psycopg.connect(site.database) as connection:
        assert connection.execute("SELECT count(*) FROM pysched.owed").fetchone() == (0,)


def test_the_file_of_a_result_that_a_killed_node_had_committed_goes(site: Site) -> None:
    """The node dies between the commit and the removal: here the file is put back as it was."""
    place = site.completed / "job.done"
    place.mkdir(parents=True)
    node = site.node()
    site.drop("job", {"command": """sh -c 'echo "[7]" > "$PYSCHED_RESULT"'"""})
    wait_until(lambda: state(site, "job") == "succeeded", "the end to be committed")
    node.await_message(".done files wait")
    node.kill()
    (output,) = site.home.rglob("job.1.out")
    result = output.with_suffix(".result")
    assert not result.exists()
    result.write_text("[7]\n")
    place.rmdir()
    node = site.node()
    assert site.done("job")["result"] == [7]
    wait_until(lambda: not result.exists(), "the end of the file")
    assert node.terminate() == 0
