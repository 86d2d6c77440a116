"""A node dies, or is loaded anew, and its jobs go on."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pysched import delegation
from pysched.home import Home
from pysched.store.store import Store

from .conftest import Process, Site, wait_until
from .test_scheduling import states


def node_pid(process: Process) -> int:
    """Of the node that the guard runs now, awaited."""
    pid: int = wait_until(process.children, "a node")[0]
    return pid


def kill_node(process: Process, number: signal.Signals = signal.SIGKILL) -> None:
    """End the node, and return when the guard's next one serves."""
    said = process.messages.count(" ready ")
    os.kill(node_pid(process), number)
    wait_until(lambda: process.messages.count(" ready ") > said, f"another node; said was:\n{process.messages}")


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def await_other_node(guard: Process, before: int) -> None:
    wait_until(lambda: guard.children() not in ([], [before]), "another node")


def has_started(site: Site) -> int:
    """How many tasks have, also such as have ended since."""
    with psycopg.connect(site.database) as connection:
        row = connection.execute("select count(*)::int from pysched.tasks where started_at is not null").fetchone()
        return int(row[0]) if row is not None else 0


def attempts_of(site: Site, task_id: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(site.database) as connection:
        return connection.execute(
            "select attempt, state, exit_code, pid, started_at is not null, cpu_ms >= 0 from pysched.attempts"
            " where task_id = %s order by attempt",
            (task_id,),
        ).fetchall()


@pytest.fixture
def gate(site: Site) -> Path:
    path = site.root / "gate"
    os.mkfifo(path)
    return path


def test_a_job_outlives_a_killed_node_and_its_end_is_recorded(site: Site, gate: Path) -> None:
    guard = site.node()
    site.drop("job", {"command": f"echo $$; read line < {gate}; echo after; exit 7", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    kill_node(guard)
    assert "adopted" in guard.messages
    (pid,) = (int(line) for log in site.home.glob("logs/*/job.1.out") for line in log.read_text().split())
    guard.popen.send_signal(signal.SIGSTOP)
    gate.write_text("go\n")
    wait_until(lambda: is_zombie(pid), "the job to end")
    assert states(site) == {"running": 1}  # only the guard can ask how it ended
    guard.popen.send_signal(signal.SIGCONT)
    record = site.done("job")
    assert (record["status"], record["reason"], record["exit_code"], record["attempts"]) == ("failed", "exit 7", 7, 1)
    _, after = Path(record["stdout"]).read_text().split()
    assert after == "after"
    assert attempts_of(site, "job") == [(1, "failed", 7, pid, True, True)]
    site.drop("next", {"command": "true"})
    assert site.done("next")["status"] == "succeeded"
    assert guard.terminate() == 0
    assert site.leftovers() == []


def test_a_job_that_ends_while_there_is_no_node_is_recorded(site: Site) -> None:
    guard = site.node()
    site.drop("job", {"command": "while [ -d /proc/$PPID ]; do sleep 0.01; done; exit 7", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    kill_node(guard)
    record = site.done("job")
    assert (record["status"], record["exit_code"], record["attempts"]) == ("failed", 7, 1)


def test_a_result_that_was_read_and_not_recorded_outlives_the_node(site: Site) -> None:
    guard = site.node()
    waiting = "select pid from pg_locks where relation = 'pysched.attempts'::regclass and not granted"
    with psycopg.connect(site.database) as connection:
        connection.execute("lock table pysched.attempts in share mode")
        site.drop("job", {"command": "echo '[1, 2]' > $PYSCHED_RESULT"})
        recording = wait_until(lambda: connection.execute(waiting.encode()).fetchall(), "its end to be recorded")
        kill_node(guard)
        for (backend,) in recording:  # it does not know that nobody hears it any more
            connection.execute("select pg_terminate_backend(%s, 60000)", (backend,))
    record = site.done("job")
    assert (record["status"], record["attempts"], record["result"]) == ("succeeded", 1, [1, 2])
    wait_until(lambda: not list(site.home.glob("logs/*/job.1.result")), "the file of what is recorded to go")


def test_an_adopted_job_keeps_its_timeout_its_log_limit_and_its_worker(site: Site, gate: Path) -> None:
    guard = site.node("--log-limit", "10KiB", workers=2)
    site.drop("hangs", {"command": "sleep 600 & sleep 600", "timeout_s": 4, "grace_s": 0, "max_retries": 0})
    site.drop("bomb", {"command": f"read line < {gate}; seq 1000000"})
    wait_until(lambda: has_started(site) == 2, "both to start")
    site.drop("waits", {"command": "true", "priority": "low"})
    kill_node(guard)
    assert site.done("waits")["status"] == "succeeded"  # on the worker that the timeout gave back
    gate.write_text("go\n")
    bomb = Path(site.done("bomb")["stdout"]).read_bytes()
    assert bomb[10240:] == b"\n[pysched: over the limit of 10240 bytes, the rest is dropped]\n"
    hangs = site.done("hangs")
    assert (hangs["reason"], hangs["attempts"]) == ("timeout", 1)
    assert site.leftovers() == []


# Sheds all that gives a descendant away but its cgroup.
HIDES = """
import os, resource
if os.fork() == 0:
    os.setsid()
    resource.prlimit(0, 15, (7, 7))
    if os.fork() == 0:
        os.execve("/bin/sh", ["sh", "-c", "echo $$ > hidden; exec sleep 600"], {})
    os._exit(0)
"""


@pytest.fixture
def leaves(site: Site) -> Path:
    """Where those of this site's node are, while there is one."""
    home = Home(site.home)
    home.prepare()
    try:
        return delegation.check() / f"pysched-{home.identity()}"
    except delegation.NotDelegated as error:
        pytest.skip(str(error))


def hide(site: Site) -> int:
    """Run a job with a hidden descendant, whose pid this is."""
    site.drop("job", {"command": f"{sys.executable} -S -c '{HIDES}'; exec sleep 600", "max_retries": 0})
    place = site.home / "work" / "hidden"
    wait_until(lambda: place.exists() and place.read_text() != "", "the descendant")
    return int(place.read_text())


def test_an_adopted_job_ends_with_all_that_is_in_its_control_group(site: Site, leaves: Path) -> None:
    guard = site.node()
    hidden = hide(site)
    leaf = delegation.leaf_of(hidden)
    assert leaf is not None
    assert leaf.parent == leaves
    kill_node(guard)
    with Store(site.database) as store:
        store.cancel("job")
    assert site.done("job")["status"] == "cancelled"
    assert not Path(f"/proc/{hidden}").exists() or is_zombie(hidden)
    assert guard.terminate() == 0
    assert not leaves.exists()


def test_a_job_that_lost_node_and_guard_ends_with_all_that_is_in_its_control_group(site: Site, leaves: Path) -> None:
    guard = site.node()
    hidden = hide(site)
    (node,) = guard.children()
    os.kill(guard.popen.pid, signal.SIGKILL)
    os.kill(node, signal.SIGKILL)
    second = site.node()
    assert site.done("job")["reason"] == "lost"
    assert not Path(f"/proc/{hidden}").exists() or is_zombie(hidden)
    assert second.terminate() == 0
    assert not leaves.exists()


def test_without_control_groups_a_job_ends_as_well(site: Site, leaves: Path) -> None:
    (site.home / "pysched.toml").write_text('cgroup = "off"\n')
    site.node()
    site.drop("job", {"command": "(setsid sleep 600 &); sleep 600", "timeout_s": 0.5, "grace_s": 0, "max_retries": 0})
    assert site.done("job")["reason"] == "timeout"
    assert not leaves.exists()
    assert site.leftovers() == []


def test_an_adopted_job_can_be_cancelled_with_its_tree(site: Site) -> None:
    guard = site.node()
    site.drop("job", {"command": "(setsid sleep 600 &) ; trap '' TERM; sleep 600 & wait", "grace_s": 0.1})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    kill_node(guard)
    with Store(site.database) as store:
        store.cancel("job")
    record = site.done("job")
    assert (record["status"], record["reason"], record["attempts"]) == ("cancelled", "user", 1)
    assert site.leftovers() == []


def test_a_second_kill_in_the_middle_of_adoption_loses_nothing(site: Site, gate: Path) -> None:
    guard = site.node()
    site.drop("job", {"command": f"read line < {gate}; exit 7", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    for _ in range(3):
        before = node_pid(guard)
        os.kill(before, signal.SIGKILL)
        await_other_node(guard, before)
    kill_node(guard)
    gate.write_text("go\n")
    record = site.done("job")
    assert (record["exit_code"], record["attempts"]) == (7, 1)


def test_a_stop_while_there_is_no_node_still_drains(site: Site, gate: Path) -> None:
    guard = site.node()
    site.drop("job", {"command": f"read line < {gate}; exit 7", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    guard.popen.send_signal(signal.SIGSTOP)
    os.kill(node_pid(guard), signal.SIGKILL)
    guard.popen.send_signal(signal.SIGTERM)
    guard.popen.send_signal(signal.SIGCONT)
    guard.await_message("draining")
    gate.write_text("go\n")
    assert guard.popen.wait(60) == 0
    assert (site.done("job")["exit_code"], site.done("job")["attempts"]) == (7, 1)


def test_when_guard_and_node_die_together_the_attempt_is_lost(site: Site) -> None:
    first = site.node(workers=1)
    site.drop("job", {"command": "[ $PYSCHED_ATTEMPT = 2 ] || sleep 600", "retry_delay_s": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    first.kill()
    site.node(workers=1)
    assert site.done("job")["attempts"] == 2
    assert [row[:2] for row in attempts_of(site, "job")] == [(1, "failed"), (2, "succeeded")]
    assert site.leftovers() == []


def test_a_new_guard_waits_for_the_jobs_of_one_that_was_killed(site: Site, gate: Path) -> None:
    first = site.node(workers=1)
    site.drop("job", {"command": f"read line < {gate}; exit 7", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    orphan = node_pid(first)
    first.popen.kill()
    wait_until(lambda: "draining" in first.messages, "the node to drain")
    site.drop("next", {"command": "true"})
    second = site.start("run", "--queue", str(site.queue), "--completed", str(site.completed))
    second.await_message(f"waiting for the node with pid {orphan}")
    gate.write_text("go\n")
    record = site.done("job")
    assert (record["exit_code"], record["attempts"]) == (7, 1)
    second.await_message(" ready ")
    assert site.done("next")["status"] == "succeeded"
    assert second.terminate() == 0


def test_a_guard_that_waits_for_another_ones_node_can_be_stopped(site: Site, gate: Path) -> None:
    first = site.node(workers=1)
    site.drop("job", {"command": f"read line < {gate}"})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    orphan = os.pidfd_open(node_pid(first))
    first.popen.kill()
    second = site.start("run", "--queue", str(site.queue), "--completed", str(site.completed))
    second.await_message("waiting for the node with pid")
    assert second.terminate() == 0
    gate.write_text("go\n")
    assert site.done("job")["attempts"] == 1
    wait_until(lambda: select.select([orphan], [], [], 0)[0], "the first node to end")
    os.close(orphan)


def test_an_attempt_that_was_adopted_and_then_lost_is_ended_before_its_retry(site: Site) -> None:
    first = site.node(workers=1)
    site.drop("job", {"command": "[ $PYSCHED_ATTEMPT = 2 ] || sleep 600", "retry_delay_s": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    kill_node(first)
    first.kill()
    (site.home / "attempts.table").unlink()  # as another home's node, which sweeps by what the store says
    site.node(workers=1)
    assert site.done("job")["attempts"] == 2
    assert site.leftovers() == []


def test_reload_loads_both_anew_and_jobs_do_not_notice(site: Site, gate: Path) -> None:
    guard = site.node()
    site.drop("job", {"command": f"echo $PPID; read line < {gate}; echo $PPID; exit 7", "max_retries": 0})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    for number in range(3):  # ends in the middle of it
        site.drop(f"busy{number}", {"command": "exit 1", "max_retries": 50, "retry_delay_s": 0.05})
    before = node_pid(guard)
    (site.home / "pysched.toml").write_text("ageing_s = 1.0\n")
    reload = [sys.executable, "-m", "pysched.cli", "reload", "--home", str(site.home)]
    said = guard.messages.count(" ready ")
    assert subprocess.run(reload, check=False).returncode == 0
    wait_until(lambda: guard.messages.count(" ready ") > said, "another node")
    assert "handed over" in guard.messages
    assert node_pid(guard) != before
    words = Path(f"/proc/{guard.popen.pid}/cmdline").read_bytes().split(b"\0")
    assert bytes(site.home) in words
    assert words[-2] == bytes(site.completed)  # the last that was given: nothing is added
    site.drop("next", {"command": "true"})
    assert site.done("next")["attempts"] == 1
    gate.write_text("go\n")
    record = site.done("job")
    assert (record["exit_code"], record["attempts"]) == (7, 1)
    assert Path(record["stdout"]).read_text() == f"{before}\n{before}\n"  # a shell asks once
    assert guard.terminate() == 0
    assert "defect" not in guard.messages


def test_a_reload_of_nothing_is_one_line(site: Site) -> None:
    reload = site.start("reload")
    assert reload.popen.wait(60) == 1
    assert reload.messages.startswith(f"error: no scheduler runs on home {site.home}")
    assert reload.messages.count("\n") == 1


def test_a_node_that_cannot_start_is_not_started_again(site: Site) -> None:
    process = site.start("run", "--workers", "0")
    assert process.popen.wait(60) == 2
    assert process.messages.count("\n") == 1


def test_what_takes_down_three_nodes_is_parked_and_what_is_killed_by_hand_is_not(site: Site) -> None:
    guard = site.node()
    site.drop("poison", {"command": "sleep 600", "max_retries": 100})
    wait_until(lambda: states(site) == {"running": 1}, "the job to run")
    for _ in range(3):
        kill_node(guard)
    assert states(site) == {"running": 1}
    for _ in range(3):
        kill_node(guard, signal.SIGSEGV)
    record = site.done("poison")
    assert (record["status"], record["attempts"]) == ("failed", 1)
    assert record["reason"] == "lost: 3 nodes ended while they ran it; retry it by hand"
    assert site.leftovers() == []
    site.drop("next", {"command": "true"})
    assert site.done("next")["status"] == "succeeded"
