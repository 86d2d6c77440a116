"""Order, breadth, stopping and recovery of a node."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg

from .conftest import Site, wait_until


def states(site: Site) -> dict[str, int]:
    with psycopg.connect(site.database) as connection:
        return dict(connection.execute("select state, count(*)::int from pysched.tasks group by state").fetchall())


def test_high_before_med_before_low_larger_rank_first_then_arrival(site: Site) -> None:
    order = site.root / "order"
    wanted: list[tuple[int, int, int, str]] = []
    for number in range(300):
        priority, rank = number * 7 % 3, (number * 13 % 5) - 2
        wanted.append((priority, -rank, number, f"t{number:03d}"))
        site.drop(
            f"t{number:03d}",
            {
                "priority": ["HIGH", "MED", "LOW"][priority],
                "rank": rank,
                "command": f"echo $PYSCHED_TASK_ID >> {order}",
            },
        )
        os.utime(site.queue / f"t{number:03d}.task", ns=(number, 1_000_000_000 + number))
    site.node(workers=1)
    site.all_done(300)
    assert order.read_text().split() == [name for *_, name in sorted(wanted)]


def test_512_workers_run_512_attempts_at_once(site: Site) -> None:
    gate, arrived = site.root / "gate", site.root / "arrived"
    os.mkfifo(gate)
    arrived.mkdir()
    for number in range(512):
        site.drop(f"w{number}", {"command": f": > {arrived}/$PYSCHED_TASK_ID; read line < {gate}", "max_retries": 0})
    site.node("--lanes", "2", workers=512)
    wait_until(lambda: len(os.listdir(arrived)) == 512, "512 attempts to run at once")
    wait_until(lambda: states(site) == {"running": 512}, "the store to say so")
    with gate.open("w") as release:  # every reader has it open: one line each
        release.write("go\n" * 512)
        release.flush()
        records = site.all_done(512)
    assert {record["attempts"] for record in records.values()} == {1}


def test_term_drains(site: Site) -> None:
    node = site.node(workers=1)
    gate = site.root / "gate"
    os.mkfifo(gate)
    site.drop("running", {"command": f"read line < {gate}; echo finished"})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    site.drop("waiting", {"command": "true"})
    wait_until(lambda: states(site) == {"running": 1, "queued": 1}, "the second job to wait")
    node.popen.send_signal(signal.SIGTERM)
    node.await_message("draining")
    gate.write_text("go\n")
    assert node.popen.wait(60) == 0
    assert site.done("running")["status"] == "succeeded"
    assert states(site) == {"succeeded": 1, "queued": 1}
    assert (site.temporary_files(), site.leftovers()) == ([], [])
    site.node()
    assert site.done("waiting")["attempts"] == 1


def test_a_second_term_stops_at_once_and_hands_back(site: Site) -> None:
    node = site.node(workers=2)
    site.drop("long", {"command": "trap '' TERM; sleep 600 & sleep 600", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    node.popen.send_signal(signal.SIGTERM)
    node.await_message("draining")
    node.popen.send_signal(signal.SIGTERM)
    assert node.popen.wait(60) == 0
    assert states(site) == {"queued": 1}
    assert (site.temporary_files(), site.leftovers(), site.done_ids()) == ([], [], [])
    with psycopg.connect(site.database) as connection:
        attempts = connection.execute("select attempt, state, reason from pysched.attempts").fetchall()
    assert attempts == [(1, "cancelled", "shutdown")]


def test_the_drain_time_ends_in_handing_back(site: Site) -> None:
    node = site.node("--drain-timeout", "0.2", workers=2)
    site.drop("long", {"command": "sleep 600", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    assert node.terminate() == 0
    assert states(site) == {"queued": 1}
    assert site.leftovers() == []


def test_a_killed_node_loses_nothing(site: Site) -> None:
    ledger = site.root / "ledger"
    for number in range(500):
        command = f'sleep 0.0{number % 5}; echo "$PYSCHED_TASK_ID $PYSCHED_ATTEMPT" >> {ledger}'
        site.drop(f"k{number:03d}", {"command": command})
    node = site.node(workers=8)
    wait_until(lambda: len(site.done_ids()) > 100, "a hundred tasks to end")
    node.kill()
    before = len(site.done_ids())
    assert before < 500
    restarted = site.node(workers=8)
    records = site.all_done(500)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert restarted.terminate() == 0
    assert states(site) == {"succeeded": 500}
    lines = ledger.read_text().splitlines()
    assert len(set(lines)) == len(lines), "an attempt number ran twice"
    with psycopg.connect(site.database) as connection:
        rows: list[Any] = connection.execute("select task_id || ' ' || attempt, state from pysched.attempts").fetchall()
    recorded = dict(rows)
    assert set(lines) <= set(recorded), "an execution that nobody recorded"
    assert len([state for state in recorded.values() if state == "succeeded"]) == 500
    assert site.leftovers() == []


def test_jobs_of_a_killed_node_are_ended_before_they_run_again(site: Site) -> None:
    node = site.node(workers=1)
    pids = site.root / "pids"
    site.drop("job", {"command": f"echo $$ >> {pids}; [ $PYSCHED_ATTEMPT = 2 ] || sleep 600", "retry_delay_s": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    node.kill()
    assert site.leftovers() != []
    site.node(workers=1)
    record = site.done("job")
    assert (record["status"], record["attempts"]) == ("succeeded", 2)
    assert site.leftovers() == []
    assert len(pids.read_text().split()) == 2


def test_a_task_of_a_newer_version_fails_alone(site: Site) -> None:
    site.node(workers=1)
    with psycopg.connect(site.database, autocommit=True) as connection:
        connection.execute(
            "insert into pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at) "
            "values ('newer', 'newer', 'system', 0, 0, '{\"colour\": 1}', 'queued', now())"
        )
    site.drop("ordinary", {"command": "true"})
    newer = site.done("newer")
    assert (newer["status"], newer["attempts"]) == ("failed", 1)
    assert newer["reason"].startswith("spawn: ")
    assert "colour" in newer["reason"]
    assert site.done("ordinary")["status"] == "succeeded"


def test_a_delayed_task_starts_when_its_time_has_come(site: Site) -> None:
    """Told to the node by the accept: nothing else would make it look before its next poll."""
    site.node("--poll", "60", workers=1)
    site.drop("later", {"command": "true", "delay_s": 0.3})
    later = site.done("later")
    assert 300 <= later["wait_ms"] < 4_000
