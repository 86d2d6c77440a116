"""The table of attempts: what a killed process leaves of its attempts, and who goes on with them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysched._core import (
    EXITED,
    ROW_ENDED,
    ROW_LOST,
    ROW_NEVER_RAN,
    ROW_RUNNING,
    SPAWN_FAILED,
    AttemptRow,
    AttemptTable,
)

from .conftest import DEADLINE_S, Gate, Run, wait_until

GUARD = b"g" * 16


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "attempts.table")
    AttemptTable.begin(path, GUARD)
    return path


def test_a_row_lives_from_the_start_until_its_end_is_durable(path: str, start: Callable[..., Run], gate: Gate) -> None:
    table = AttemptTable(path, GUARD, rows=10)
    run = start(table=table)
    (handle,) = run.submit(run.shell(f"{gate.hold}; exit 7", token=5, mark=77))
    pid = run.started(handle).pid
    assert [(row.state, row.pid, row.token, row.mark) for row in table.rows()] == [(ROW_RUNNING, pid, 5, 77)]
    assert [(row.state, row.pid) for row in AttemptTable(path, GUARD).rows()] == [(ROW_RUNNING, pid)]
    gate.open()
    told, kept = run.end(handle), table.row(5).end(handle)
    assert table.row(5).state == ROW_ENDED
    assert (kept.kind, kept.handle, kept.pid, kept.status, kept.cause) == (EXITED, handle, pid, 7 << 8, told.cause)
    assert kept.started_ns == told.started_ns
    assert kept.cpu_ns == told.cpu_ns
    assert 0 < kept.run_ns <= told.run_ns
    assert repr(table.row(5)) == f"<AttemptRow state={ROW_ENDED} pid={pid} token=5>"
    assert table.row(5).since_ns == table.row(5).started_ns > 0
    table.release([5, 6])
    assert (table.rows(), len(table)) == ([], 0)
    with pytest.raises(KeyError):
        table.row(5)


def test_what_never_started_leaves_no_row(path: str, start: Callable[..., Run]) -> None:
    table = AttemptTable(path, GUARD, rows=10)
    run = start(table=table)
    run.submit(run.launch("/no/such/program", token=1), run.launch("/bin/true"))
    assert {event.kind for event in run.ends([1, 2])} == {SPAWN_FAILED, EXITED}
    assert table.rows() == []


def test_a_full_table_holds_back_what_would_be_forgotten(path: str, start: Callable[..., Run]) -> None:
    table = AttemptTable(path, GUARD, rows=1)
    assert table.capacity == 1
    run = start(table=table)
    run.submit(run.launch("/bin/true", token=1), run.launch("/bin/true", token=2))
    assert run.end(1).status == 0
    wait_until(lambda: run.core.counters()["backed_off"] > 0, "the second to be held back")
    table.release([1])
    assert run.end(2).status == 0


def test_a_kill_stands_in_the_row(path: str, start: Callable[..., Run], gate: Gate) -> None:
    table = AttemptTable(path, GUARD, rows=1)
    run = start(table=table)
    (handle,) = run.submit(run.shell(f"trap '' TERM; {gate.hold}", token=1))
    run.started(handle)
    assert not table.row(1).ending
    run.core.kill(handle, 600.0, 200)
    wait_until(lambda: table.row(1).ending, "the row to say so")
    assert table.row(1).end(0).cause == 200
    gate.open()
    assert run.end(handle).cause == 200


def test_only_its_guard_opens_it_and_what_ran_under_another_is_lost(path: str, start: Callable[..., Run]) -> None:
    table = AttemptTable(path, GUARD, rows=10)
    run = start(table=table)
    run.submit(run.launch("/bin/sleep", "600", token=1), run.launch("/bin/true", token=2))
    run.end(2)
    run.started(1)
    with pytest.raises(ValueError, match="another guard"):
        AttemptTable(path, b"h" * 16)
    AttemptTable.begin(path, b"h" * 16)
    assert {row.token: row.state for row in AttemptTable(path, b"h" * 16).rows()} == {1: ROW_LOST, 2: ROW_ENDED}
    run.core.kill(1, 0.0, 200)
    assert run.end(1).status == signal.SIGKILL
    assert AttemptTable(path, b"h" * 16).row(1).state == ROW_ENDED  # its node lived on and told


@pytest.mark.parametrize(
    ("place", "words"), [(0, "no table"), (8, "no table"), (12, "no table"), (32, "earlier start")]
)
def test_a_file_of_another_kind_or_another_start_of_the_machine_is_not_believed(
    path: str, place: int, words: str
) -> None:
    content = bytearray(Path(path).read_bytes())
    content[place] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        AttemptTable(path, GUARD)
    AttemptTable.begin(path, GUARD)
    assert AttemptTable(path, GUARD).rows() == []


def test_wrong_arguments_are_told(path: str, tmp_path: Path, start: Callable[..., Run]) -> None:
    with pytest.raises(FileNotFoundError):
        AttemptTable(str(tmp_path / "absent"), GUARD)
    with pytest.raises(ValueError, match="16"):
        AttemptTable.begin(path, b"short")
    run = start()
    with pytest.raises(ValueError, match="token"):
        run.core.adopt(run.launch("/bin/true", token=1))


# ---- a killed process, its guard (this process), and the one that comes after ----------------------------------------

NODE = """
import json, os, signal, sys
from pysched._core import *
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
what, path, bell, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
table = AttemptTable(path, b"g" * 16, rows=10)
core = Core(lanes=2, workers=8, table=table, guard=(int(os.environ.get("GUARD") or os.getppid()), bell))

def launch(token, command, output=None, **more):
    return Launch(
        handle=token, priority=1, rank=0, sequence=token, argv=[b"sh", b"-c", command.encode()],
        candidates=[b"/bin/sh"], env=[b"PATH=/usr/bin:/bin"], cwd=b"/", token=token, mark=1000 + token,
        stdout=os.fsencode(output or f"{folder}/{token}.out"), stderr=b"/dev/null", **more)

if what == "start":
    core.submit([launch(**given) for given in json.loads(sys.argv[5])])
else:
    for row in table.rows():
        print(json.dumps(["adopted", row.token, core.adopt(launch(row.token, "", grace_s=0.0))]), flush=True)
while True:
    for event in core.poll(None):
        kind = {STARTED: "started", EXITED: "exited"}[event.kind]
        print(json.dumps([kind, event.handle, event.status, event.errno, event.cause, event.run_ns]), flush=True)
"""


class Family:
    """This process as the guard of nodes."""

    def __init__(self, path: str, folder: Path) -> None:
        self.table_path = path
        self.folder = folder
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.nodes: list[subprocess.Popen[bytes]] = []

    def node(self, what: str, *more: str, guard: int | None = None) -> subprocess.Popen[bytes]:
        node = subprocess.Popen(
            [sys.executable, "-c", NODE, what, self.table_path, str(self.bell), str(self.folder), *more],
            env={**os.environ, "GUARD": str(guard or "")},
            stdout=subprocess.PIPE,
            bufsize=0,  # or `say` would wait for what has been read already
            pass_fds=[self.bell],
            start_new_session=True,
        )
        self.nodes.append(node)
        return node

    def start(self, *launches: dict[str, Any]) -> subprocess.Popen[bytes]:
        return self.node("start", json.dumps(launches))

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        node.kill()
        node.wait()

    def rows(self) -> dict[int, AttemptRow]:
        return {row.token: row for row in AttemptTable(self.table_path, GUARD).rows()}

    def collect(self, pid: int) -> bool:
        """As the guard does when a child has ended."""
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        found = AttemptTable(self.table_path, GUARD).collect(pid)
        os.eventfd_write(self.bell, 1)
        return found

    def close(self) -> None:
        for node in self.nodes:
            if node.poll() is None:  # it lets its attempts go on, adopted ones as its own
                node.terminate()
                assert node.wait(DEADLINE_S) == 0
            assert node.stdout is not None
            node.stdout.close()
        for row in self.rows().values():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.killpg(row.pid, signal.SIGKILL)
                os.waitpid(row.pid, 0)
        os.close(self.bell)


def say(node: subprocess.Popen[bytes]) -> list[Any]:
    """The next line of a node."""
    assert node.stdout is not None
    ready, _, _ = select.select([node.stdout], [], [], DEADLINE_S)
    assert ready, "the node says nothing"
    line: list[Any] = json.loads(node.stdout.readline())
    return line


def is_gone(group: int) -> bool:
    """Whether nothing lives in a group of our children, and of nobody else's."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-group, os.WNOHANG)
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def family(path: str, tmp_path: Path) -> Iterator[Family]:
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int()
    assert libc.prctl(37, ctypes.byref(before), 0, 0, 0) == 0  # PR_GET_CHILD_SUBREAPER
    assert libc.prctl(36, 1, 0, 0, 0) == 0
    family = Family(path, tmp_path)
    try:
        yield family
    finally:
        family.close()
        libc.prctl(36, before.value, 0, 0, 0)


def test_an_attempt_outlives_its_process_and_the_next_one_tells_its_end(family: Family, gate: Gate) -> None:
    first = family.start({"token": 5, "command": f"{gate.hold}; exit 7"})
    assert say(first)[:2] == ["started", 5]
    family.kill(first)
    second = family.node("adopt")
    assert say(second) == ["adopted", 5, True]
    assert say(second)[:2] == ["started", 5]
    gate.open()
    assert family.collect(family.rows()[5].pid)
    assert say(second)[:5] == ["exited", 5, 7 << 8, 0, 0]


def test_an_end_that_the_guard_wrote_before_the_adopter_came_is_its_end(family: Family, gate: Gate) -> None:
    first = family.start({"token": 5, "command": f"sleep 600 & {gate.hold}; exit 7"})
    say(first)
    family.kill(first)
    gate.open()
    pid = family.rows()[5].pid
    assert family.collect(pid)
    row = family.rows()[5]
    assert (row.state, row.end(1).status, row.ending) == (ROW_ENDED, 7 << 8, False)
    wait_until(lambda: is_gone(pid), "the rest of its group to be killed")
    second = family.node("adopt")
    assert say(second) == ["adopted", 5, False]


def test_a_timeout_is_kept(family: Family) -> None:
    first = family.start(
        {"token": 5, "command": "trap '' TERM; sleep 600 & wait; sleep 600", "timeout_s": 1.0, "grace_s": 0.0}
    )
    say(first)
    family.kill(first)
    second = family.node("adopt")
    assert (say(second), say(second)[:2]) == (["adopted", 5, True], ["started", 5])
    assert family.collect(family.rows()[5].pid)
    kind, token, status, _, cause, run_ns = say(second)
    assert (kind, token, status, cause) == ("exited", 5, signal.SIGKILL, 1)
    assert run_ns >= 1e9


def test_an_adopter_whose_guard_had_died_when_it_came_adopts_nothing(family: Family, gate: Gate) -> None:
    """It has another parent then, who tells no ends: here this process, under a number that is nobody's."""
    first = family.start({"token": 5, "command": gate.hold})
    say(first)
    family.kill(first)
    with subprocess.Popen("true") as dead:
        pass
    second = family.node("adopt", guard=dead.pid)
    assert say(second) == ["adopted", 5, False]
    gate.open()


def test_without_its_guard_an_adopter_learns_no_end(family: Family, gate: Gate) -> None:
    """The end is not collected, as by a guard that was killed: the adopter waits, and hears when it is."""
    first = family.start({"token": 5, "command": f"{gate.hold}; exit 7"})
    say(first)
    family.kill(first)
    second = family.node("adopt")
    assert (say(second), say(second)[:2]) == (["adopted", 5, True], ["started", 5])
    gate.open()
    pid = family.rows()[5].pid
    os.waitpid(pid, 0)  # collected behind the table's back
    os.eventfd_write(family.bell, 1)
    kind, token, status, errno, *_ = say(second)
    assert (kind, token, status, os.strerror(errno)) == ("exited", 5, -1, "No child processes")


def test_what_did_not_become_its_program_never_ran(family: Family, tmp_path: Path) -> None:
    """A child that waits to open its output has neither its mark nor its program."""
    os.mkfifo(tmp_path / "output")
    first = family.start({"token": 5, "command": "true", "output": str(tmp_path / "output")})
    wait_until(lambda: 5 in family.rows() and family.rows()[5].pid != 0, "the child to be known")
    pid = family.rows()[5].pid
    wait_until(lambda: os.getsid(pid) == pid, "the child to have a session")
    family.kill(first)
    os.kill(pid, signal.SIGKILL)
    assert family.collect(pid)
    assert family.rows()[5].state == ROW_NEVER_RAN


def test_a_stranger_is_collected_without_a_row(family: Family) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    assert not family.collect(child)
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)


def test_states_are_not_told_twice(family: Family, gate: Gate) -> None:
    """A bell for others disturbs nothing."""
    first = family.start({"token": 5, "command": f"{gate.hold}; exit 7"})
    say(first)
    family.kill(first)
    second = family.node("adopt")
    assert (say(second), say(second)[:2]) == (["adopted", 5, True], ["started", 5])
    for _ in range(10):
        os.eventfd_write(family.bell, 1)
    gate.open()
    assert family.collect(family.rows()[5].pid)
    assert say(second)[:3] == ["exited", 5, 7 << 8]
