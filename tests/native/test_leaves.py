"""Attempts in control groups of their own: each is born in a leaf, which is used again once nobody is in it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pysched import delegation
from pysched._core import CAUSE_CANCEL

from .conftest import Gate, Run, alive, few_descriptors, wait_until

Start = Callable[..., Run]


@pytest.fixture
def cgroup(leaves: Path) -> Path:
    return leaves


def leaf_of(pid: int) -> str:
    """The last name of the cgroup that a process is in."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line for line in lines if line.startswith("0::")).rpartition("/")[2]


def names(cgroup: Path) -> set[str]:
    return {path.name for path in cgroup.iterdir() if path.is_dir()}


def cancel(run: Run, handle: int, grace_s: float = 0.0) -> None:
    assert run.core.kill(handle, grace_s, CAUSE_CANCEL)
    assert run.end(handle).survivors == 0


def test_attempts_that_run_at_once_are_in_leaves_of_their_own(start: Start, cgroup: Path) -> None:
    run = start(lanes=2)
    handles = run.submit(*(run.shell("sleep 1000 & exec sleep 1000") for _ in range(8)))
    members = [leaf_of(run.started(handle).pid) for handle in handles]
    assert len(set(members)) == 8
    assert set(members) == names(cgroup)


def test_a_leaf_is_used_again(start: Start, cgroup: Path) -> None:
    run = start(workers=2)
    handles = run.submit(*(run.launch("/bin/true") for _ in range(50)))
    assert {event.status for event in run.ends(handles)} == {0}
    assert max(map(int, names(cgroup))) < 50  # the kernel may say a moment late that one is empty


def test_the_descriptors_of_leaves_are_few(start: Start, cgroup: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    run = start(workers=300)
    handles = run.submit(*(run.launch("/bin/sleep", "1000") for _ in range(300)))
    for handle in handles:
        run.started(handle)
    assert len(names(cgroup)) == 300
    assert len(os.listdir("/proc/self/fd")) - before <= 300 + 128 + 16  # pidfds, the first 64 leaves, the core's own


def test_a_daemon_keeps_its_leaf_and_outlives_its_attempt_and_the_next_ones(
    start: Start, cgroup: Path, gate: Gate
) -> None:
    run = start()
    (first,) = run.submit(run.shell(f"setsid -f sh -c 'echo $$ > pid; {gate.hold}'; while [ ! -s pid ]; do :; done"))
    run.end(first)
    daemon = int((run.folder / "pid").read_text())
    leaf = leaf_of(daemon)
    (second,) = run.submit(run.launch("/bin/sleep", "1000"))
    assert leaf_of(run.started(second).pid) != leaf
    cancel(run, second)
    assert alive(daemon)
    assert leaf in names(cgroup)
    gate.open()
    wait_until(lambda: not alive(daemon), "the daemon's end")
    wait_until(lambda: "populated 0" in (cgroup / leaf / "cgroup.events").read_text(), "its leaf to be empty")
    run.ends(run.submit(*(run.shell("kill -9 $$") for _ in range(3))))  # so each is one that a leaf is made for
    assert leaf not in names(cgroup)


def test_who_comes_after_an_attempt_that_was_killed_is_not_killed_with_it(start: Start, cgroup: Path) -> None:
    """As Linux does with whoever is born in a cgroup that was killed before."""
    run = start(workers=1)
    (first,) = run.submit(run.launch("/bin/sleep", "1000"))
    leaf = leaf_of(run.started(first).pid)
    cancel(run, first)
    (second,) = run.submit(run.shell(f"echo 1 > {cgroup}/$(sed -n 's,^0::.*/,,p' /proc/self/cgroup)/cgroup.kill; :"))
    assert run.end(second).status == signal.SIGKILL
    third, fourth = run.submit(*(run.launch("/bin/true") for _ in range(2)))
    assert [event.status for event in run.ends([third, fourth])] == [0, 0]
    assert leaf not in names(cgroup)


def test_what_has_left_its_leaf_is_ended_all_the_same(start: Start, cgroup: Path) -> None:
    run = start()
    away = delegation.own_cgroup() / "cgroup.procs"
    script = f"setsid -f sh -c 'echo $$ > {away}; echo $$ > pid; exec sleep 1000'; exec sleep 1000"
    (handle,) = run.submit(run.shell(script))
    run.started(handle)
    wait_until(lambda: (run.folder / "pid").exists() and (run.folder / "pid").read_text() != "", "the one that leaves")
    left = int((run.folder / "pid").read_text())
    assert leaf_of(left) not in names(cgroup)
    cancel(run, handle)
    assert not alive(left)


HIDES = """
import os, resource
if os.fork() == 0:
    os.setsid()
    resource.prlimit(0, 15, (7, 7))
    if os.fork() == 0:
        os.execve("/bin/sh", ["sh", "-c", SCRIPT], {})
    os._exit(0)
"""


@pytest.mark.parametrize("grace_s", [0.3, 600.0], ids=["deaf", "saves"])
def test_who_has_shed_all_but_its_leaf_has_its_grace(start: Start, tmp_path: Path, grace_s: float) -> None:
    run = start()
    trap = "'' TERM" if grace_s < 1 else "'echo saved > saved; exit 0' TERM"
    script = repr(f"trap {trap}; echo $$ > hidden; while :; do /bin/sleep 0.01; done").replace("'", "'\\''")
    hides = HIDES.replace("SCRIPT", script)
    (handle,) = run.submit(run.shell(f"{sys.executable} -S -c '{hides}'; exec sleep 1000"))
    hidden = tmp_path / "hidden"
    wait_until(lambda: hidden.exists() and hidden.read_text() != "", "the descendant")
    cancel(run, handle, grace_s)
    assert not alive(int(hidden.read_text()))
    assert (tmp_path / "saved").exists() == (grace_s > 1)
    assert run.end(handle).status == signal.SIGTERM


def test_a_leader_that_has_left_its_leaf_is_ended_all_the_same(start: Start, cgroup: Path) -> None:
    run = start()
    away = delegation.own_cgroup() / "cgroup.procs"
    (handle,) = run.submit(run.shell(f"sleep 1000 & echo $$ > {away}; echo > there; exec sleep 1000"))
    run.started(handle)
    wait_until((run.folder / "there").exists, "the leader to leave")
    cancel(run, handle)
    assert run.end(handle).status == signal.SIGKILL


def test_more_trees_than_are_killed_at_a_time_end_all_the_same(start: Start, cgroup: Path) -> None:
    run = start(lanes=2, workers=100, subreaper=True)
    handles = run.submit(*(run.shell("setsid -f sleep 1000; exec sleep 1000") for _ in range(100)))
    for handle in handles:
        run.started(handle)
    for handle in handles:
        assert run.core.kill(handle, 0, CAUSE_CANCEL)
    assert {(event.status, event.survivors) for event in run.ends(handles)} == {(signal.SIGKILL, 0)}
    assert "populated 0" in (cgroup / "cgroup.events").read_text()


def test_a_frozen_leaf_is_not_used_again(start: Start, cgroup: Path) -> None:
    """Nor may a spawn stand still in it."""
    run = start(workers=1)
    (first,) = run.submit(run.launch("/bin/true"))
    run.end(first)
    (leaf,) = names(cgroup)
    (cgroup / leaf / "cgroup.freeze").write_text("1")
    wait_until(lambda: "frozen 1" in (cgroup / leaf / "cgroup.events").read_text(), "the leaf to be frozen")
    (second,) = run.submit(run.launch("/bin/true"))
    assert run.end(second).status == 0


def test_a_job_may_make_groups_of_its_own_below_its_leaf(start: Start, cgroup: Path) -> None:
    run = start()
    below = f"own={cgroup}/$(sed -n 's,^0::.*/,,p' /proc/self/cgroup)/own; mkdir $own"
    enters = "setsid -f sh -c 'echo $$ > '$own'/cgroup.procs; echo $$ > pid; exec sleep 1000'"
    script = f"{below}; {enters}; exec sleep 1000"
    (handle,) = run.submit(run.shell(script))
    run.started(handle)
    wait_until(lambda: (run.folder / "pid").exists() and (run.folder / "pid").read_text() != "", "the descendant")
    member = int((run.folder / "pid").read_text())
    assert leaf_of(member) == "own"
    cancel(run, handle)
    assert not alive(member)


@pytest.mark.parametrize("limit", ["cgroup.max.descendants", "cgroup.max.depth"])
def test_without_a_leaf_an_attempt_runs_and_is_ended_all_the_same(start: Start, cgroup: Path, limit: str) -> None:
    run = start()
    (cgroup / limit).write_text("0")
    try:
        (handle,) = run.submit(run.shell("setsid -f sleep 1000; exec sleep 1000"))
        pid = run.started(handle).pid
        assert names(cgroup) == set()
        assert leaf_of(pid) == leaf_of(os.getpid())
        cancel(run, handle)
    finally:
        (cgroup / limit).write_text("max")


def test_a_leaf_that_somebody_has_removed_costs_nothing(start: Start, cgroup: Path) -> None:
    run = start()
    (first,) = run.submit(run.launch("/bin/true"))
    run.end(first)
    for name in names(cgroup):
        (cgroup / name).rmdir()
    handles = run.submit(*(run.launch("/bin/true") for _ in range(3)))
    assert [event.status for event in run.ends(handles)] == [0, 0, 0]


def test_attempts_run_though_no_descriptor_is_left_for_a_leaf(start: Start, cgroup: Path) -> None:
    run = start()
    with few_descriptors(1):  # the pidfd
        (handle,) = run.submit(run.launch("/bin/true"))
        assert run.end(handle).status == 0


def test_leaves_that_lie_there_are_removed_but_for_those_that_somebody_is_in(start: Start, cgroup: Path) -> None:
    for number in (3, 70):
        (cgroup / str(number)).mkdir()
    (cgroup / "7").mkdir()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stays:
        (cgroup / "7" / "cgroup.procs").write_text(str(stays.pid))
        run = start()
        handles = run.submit(*(run.launch("/bin/sleep", "1000") for _ in range(3)))
        assert {leaf_of(run.started(handle).pid) for handle in handles} == {"71", "72", "73"}
        assert names(cgroup) == {"7", "71", "72", "73"}
        assert stays.poll() is None


# ---- delegation ------------------------------------------------------------------------------------------------------


def test_what_is_empty_of_homes_without_a_node_is_removed_and_nothing_else() -> None:
    try:
        own = delegation.check()
    except delegation.NotDelegated as error:
        pytest.skip(str(error))
    name = f"test-{os.getpid()}-{random.randrange(10**9)}"
    abandoned = own / f"pysched-{name}-old"
    (abandoned / "1" / "below").mkdir(parents=True)
    with delegation.folder(f"{name}-held") as held:
        (held / "1").mkdir()
        with delegation.folder(f"{name}-new") as other:
            assert not abandoned.exists()
            assert (held / "1").exists()
            assert other.parent == own
    assert not held.exists()
    assert not other.exists()


def test_no_cgroup_is_no_place_for_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = tmp_path / "cgroup"
    monkeypatch.setattr(delegation, "_OWN", cgroups)
    for text in ("", "4:memory:/\n", "0::/../elsewhere\n"):
        cgroups.write_text(text)
        with pytest.raises(delegation.NotDelegated), delegation.folder("x"):
            pass


def test_the_folder_is_found_below_the_root_of_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups, mounts = tmp_path / "cgroup", tmp_path / "mounts"
    monkeypatch.setattr(delegation, "_OWN", cgroups)
    monkeypatch.setattr(delegation, "_MOUNTS", mounts)
    mounts.write_text(
        "30 23 0:26 / /proc rw - proc proc rw\n"
        "31 23 0:27 /ours\\040too /sys/fs/cg\\040roup rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n"
    )
    for text, found in (("0::/ours too/a b\n", "/sys/fs/cg roup/a b"), ("0::/ours too\n", "/sys/fs/cg roup")):
        cgroups.write_text(text)
        assert delegation.own_cgroup() == Path(found)
    cgroups.write_text("0::/ours tooth\n")
    with pytest.raises(delegation.NotDelegated):
        delegation.own_cgroup()
