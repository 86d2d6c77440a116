"""What a timeout or a cancel leaves of an attempt: nothing, however it hides; and nobody else is touched."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched._core import CAUSE_CANCEL, CAUSE_TIMEOUT, EXITED

from .conftest import Run, alive, few_descriptors, process_state, wait_until

Start = Callable[..., Run]

# Each script ends in something that carries TOKEN in its command line, by which the test finds it: not by anything that
# the core uses.  SLEEP is `sleep` for TOKEN seconds.
HOSTILE = {
    "in the background": "SLEEP & SLEEP & wait",
    "double fork": "(SLEEP &) ; SLEEP",
    "another session": "setsid -f SLEEP; setsid SLEEP",
    "another session after a double fork": "(setsid -f SLEEP &); exit 0",
    "deaf": "trap '' TERM; SLEEP & while :; do wait; SLEEP; done",
    "closed descriptors": "setsid -f SLEEP <&- >&- 2>&-; exec <&- >&- 2>&-; SLEEP",
    "stopped": "setsid -f sh -c 'kill -STOP $$; SLEEP' TOKEN; SLEEP & kill -STOP $! $$; SLEEP",
    "cleared environment": "env -i setsid -f env -i SLEEP; env -i SLEEP",
    "cleared environment, orphaned at once": "(env -i setsid -f env -i SLEEP &) & exit 0",
    "all of it": "trap '' TERM; SLEEP & "
    "(env -i setsid -f sh -c 'trap \"\" TERM; kill -STOP $$; SLEEP' TOKEN <&- >&- 2>&- &); SLEEP",
    "holds the output open": "setsid -f SLEEP; exit 0",
}

# Bounded, should the core be wrong or this process be killed.
FORKS_FOR_EVER = """
import os, time
forks, end = 0, time.monotonic() + 60
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
    forks += 1
    if forks == 10:
        open("grown", "w").close()
TOKEN
"""

# Under living parents, each of which is seen only when the one above it has ended.
GROWS_DEEP = """
import os, time
depth, end = 0, time.monotonic() + 60
os.setsid()
while depth < 2000 and time.monotonic() < end:
    depth += 1
    if depth == 10:
        open("grown", "w").close()
    if os.fork():
        time.sleep(TOKEN)
time.sleep(TOKEN)
"""

MULTIPLIES = """
import os, time
def branch():
    os.setsid()
    for _ in range(10):
        if os.fork() == 0:
            os.execve("/bin/sleep", ["sleep", "TOKEN"], {})
for _ in range(60):
    if os.fork() == 0:
        branch()
        os._exit(0)
open("grown", "w").close()
time.sleep(TOKEN)
"""


@pytest.fixture(params=["scan", "leaf"])
def cgroup(request: pytest.FixtureRequest) -> Path | None:
    """Ended by looking for them in /proc, and by the kernel."""
    leaves: Path | None = request.getfixturevalue("leaves") if request.param == "leaf" else None
    return leaves


@pytest.fixture
def token() -> str:
    """A number that stands in no other command line; as seconds, the longest life of what a broken core would leave."""
    return f"100.{random.randrange(10**8, 10**9)}"


def carriers(token: str) -> set[int]:
    """Live processes with the token in their command line."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", name, "cmdline").read_bytes()
        except OSError:  # gone
            continue
        if token.encode() in line and alive(int(name)):
            found.add(int(name))
    return found


@pytest.fixture(autouse=True)
def no_survivors(token: str) -> Iterator[None]:
    yield
    left = carriers(token)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


def hostile(script: str, token: str) -> str:
    return script.replace("SLEEP", "sleep TOKEN").replace("TOKEN", token)


def cancel(run: Run, handle: int, grace_s: float = 0.0) -> None:
    assert run.core.kill(handle, grace_s, CAUSE_CANCEL)
    event = run.end(handle)
    assert (event.kind, event.cause, event.survivors) == (EXITED, CAUSE_CANCEL, 0)


@pytest.mark.parametrize("subreaper", [False, True], ids=["plain", "subreaper"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_cancel_ends_every_descendant(start: Start, token: str, kind: str, subreaper: bool) -> None:
    run = start(subreaper=subreaper)
    (handle,) = run.submit(run.shell(f"sh -c {quoted(hostile(HOSTILE[kind], token))}; exec sleep {token}"))
    wait_until(lambda: len(carriers(token)) >= 2, "the tree")
    cancel(run, handle, grace_s=0.05)
    assert carriers(token) == set()
    assert run.core.running == 0


@pytest.mark.parametrize(
    "family",
    ["setsid -f sleep TOKEN; setsid -f sleep TOKEN", "n=0; while [ $n -lt 100 ]; do sleep TOKEN & n=$((n+1)); done"],
    ids=["sessions", "a large group"],
)
def test_a_tree_is_ended_though_no_descriptor_is_left(start: Start, token: str, family: str) -> None:
    run = start()
    (handle,) = run.submit(run.shell(f"{hostile(family, token)}; exec sleep {token}"))
    leader = run.started(handle).pid
    wait_until(lambda: process_name(leader) == "sleep" and carriers(token) == sleepers(token), "the tree")
    with few_descriptors(0):
        cancel(run, handle)
    assert carriers(token) == set()


def test_a_timeout_ends_every_descendant(start: Start, token: str) -> None:
    run = start(lanes=2, workers=len(HOSTILE))
    scripts = [hostile(script, token) for script in HOSTILE.values()]
    handles = run.submit(
        *(run.shell(f"sh -c {quoted(script)}; exec sleep {token}", timeout_s=1, grace_s=0.05) for script in scripts)
    )
    for event in run.ends(handles):
        assert (event.kind, event.cause, event.survivors) == (EXITED, CAUSE_TIMEOUT, 0)
    assert carriers(token) == set()


def quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


@pytest.mark.parametrize("program", [FORKS_FOR_EVER, GROWS_DEEP, MULTIPLIES], ids=["for ever", "deep", "many"])
def test_a_tree_that_forks_while_it_is_killed_is_ended(start: Start, token: str, program: str) -> None:
    run = start(subreaper=True)
    (handle,) = run.submit(
        run.shell(f"{sys.executable} -S -c {quoted(program.replace('TOKEN', token))}; exec sleep {token}")
    )
    wait_until((run.folder / "grown").exists, "the tree to grow")  # it may change too fast to be seen in /proc
    cancel(run, handle)
    assert carriers(token) == set()


SIBLING = """
import ctypes, os, platform, signal, sys
number = {"x86_64": 56, "aarch64": 220}[platform.machine()]  # clone(2), with CLONE_PARENT
if ctypes.CDLL(None).syscall(number, 0x8000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
os.execv("/bin/sleep", ["sleep", "1000"])
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="needs the number of clone(2)")
def test_a_sibling_of_the_leader_is_ended(start: Start, token: str) -> None:
    """It is a child of the thread that started the leader, and no orphan."""
    run = start(subreaper=True)
    (handle,) = run.submit(run.shell(f"exec {sys.executable} -S -c {quoted(SIBLING)} {token}"))
    wait_until(lambda: len(sleepers(token)) == 1, "the sibling")
    cancel(run, handle, grace_s=0.1)
    assert carriers(token) == set()


def test_how_long_a_tree_took_to_end_after_its_kill_is_told(start: Start) -> None:
    run = start()
    killed, asked, done = run.submit(*(run.launch("/bin/sleep", "1000") for _ in range(2)), run.launch("/bin/true"))
    run.started(killed)
    begun = time.monotonic_ns()
    cancel(run, killed)
    assert 0 < run.end(killed).kill_ns <= time.monotonic_ns() - begun
    cancel(run, asked, grace_s=600)
    assert [run.end(handle).kill_ns for handle in (asked, done)] == [0, 0]


# ---- grace -----------------------------------------------------------------------------------------------------------

AWAIT = "while [ ! -s {} ]; do sleep 0.01; done"  # a shell command

SAVES = "trap 'sleep 0.3; echo saved > saved; exit 0' TERM; echo ready > ready; while :; do sleep 0.01; done"


@pytest.mark.parametrize("prefix", ["", "setsid -f "], ids=["in the group", "in another session"])
def test_the_end_of_the_leader_does_not_cut_the_grace_of_the_others(start: Start, tmp_path: Path, prefix: str) -> None:
    run = start()
    (handle,) = run.submit(run.shell(f"{prefix}sh -c {quoted(SAVES)} & sleep 1000; exit 1"))
    wait_until((tmp_path / "ready").exists, "the child")
    cancel(run, handle, grace_s=60)
    assert run.end(handle).status == signal.SIGTERM  # the leader did not wait
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_after_the_grace_the_others_are_killed_though_the_leader_has_ended(start: Start, token: str) -> None:
    run = start()
    (handle,) = run.submit(run.shell(f"sh -c {quoted(hostile(HOSTILE['deaf'], token))} & sleep 1000; exit 1"))
    wait_until(lambda: len(sleepers(token)) >= 1, "the child to be deaf")
    cancel(run, handle, grace_s=0.2)
    assert run.end(handle).status == signal.SIGTERM
    assert carriers(token) == set()


def test_a_second_cancel_ends_the_grace(start: Start, token: str) -> None:
    run = start()
    (handle,) = run.submit(run.shell(f"sh -c {quoted(hostile(HOSTILE['deaf'], token))} & sleep 1000; exit 1"))
    pid = run.started(handle).pid
    wait_until(lambda: len(sleepers(token)) >= 1, "the child to be deaf")
    assert run.core.kill(handle, 3600, CAUSE_CANCEL)
    wait_until(lambda: process_state(pid) == "Z", "the leader to end")
    cancel(run, handle)
    assert carriers(token) == set()


def test_an_orphan_that_goes_on_after_a_normal_end_is_left(start: Start, token: str) -> None:
    run = start(subreaper=True)
    (handle,) = run.submit(run.shell(f"setsid -f sh -c 'echo > there; exec sleep {token}'; {AWAIT.format('there')}"))
    assert run.end(handle).status == 0
    (left,) = carriers(token)
    kill_another(run)  # a look through /proc meets it, too
    assert alive(left)
    os.kill(left, signal.SIGKILL)
    wait_until(lambda: process_state(left) == "X", "the orphan to be collected")


# ---- strangers -------------------------------------------------------------------------------------------------------


def await_orphan(run: Run) -> None:
    """Let an attempt leave an orphan that ends, and wait until it is collected."""
    (handle,) = run.submit(run.shell(f"rm -f pid; setsid -f sh -c 'echo $$ > pid'; {AWAIT.format('pid')}; cat pid"))
    run.end(handle)
    orphan = int(run.output(handle))
    wait_until(lambda: process_state(orphan) == "X", "the orphan to be collected")


def kill_another(run: Run) -> None:
    (handle,) = run.submit(run.shell("sleep 1000"))
    run.started(handle)
    cancel(run, handle)


def test_own_children_are_neither_killed_nor_collected(start: Start, token: str) -> None:
    run = start(subreaper=True)
    plain: dict[str, str] = {}  # without what a sanitizer preloads: a shell may crash under it
    with (
        subprocess.Popen(["sleep", token], start_new_session=True, env=plain) as lives,
        subprocess.Popen(["sh", "-c", "exit 3"], start_new_session=True, env=plain) as ended,
    ):
        wait_until(lambda: process_state(ended.pid) == "Z", "the end of the child")
        # Two orphans, one after the other, are collected: in between the killer has looked at all children.
        for _ in range(2):
            await_orphan(run)
        kill_another(run)
        assert ended.wait() == 3
        assert alive(lives.pid)
        lives.kill()


def test_the_tree_of_another_attempt_is_left(start: Start, token: str) -> None:
    run = start()
    script = f"(setsid -f sleep {token}); exec sleep {token}"
    first, second = run.submit(run.shell(script), run.shell(script))
    wait_until(lambda: len(carriers(token)) == 4, "both trees")
    cancel(run, first)
    assert len(carriers(token)) == 2
    cancel(run, second)


LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def may_choose_pids() -> bool:
    """Everybody may open the file to write; whether one really may is said by the write."""
    try:
        LAST_PID.write_text(LAST_PID.read_text())
    except OSError:
        return False
    return True


@pytest.mark.skipif(not may_choose_pids(), reason="only root may choose the next pid")
@pytest.mark.parametrize("member", [False, True], ids=["the leader's number", "a member's number"])
def test_a_stranger_with_a_reused_number_is_left(start: Start, token: str, member: bool) -> None:
    """The number of a process that belonged to a tree goes to a stranger, session and all, before the kill."""
    run = start()
    (handle,) = run.submit(run.shell("sh -c 'echo $$; exec setsid sh -c \"exit 0\"'; exec sleep 1000"))
    run.started(handle)
    wait_until(lambda: run.output(handle) != "", "the member")
    number = int(run.output(handle))
    wait_until(lambda: process_state(number) == "X", "the member to be gone")
    if not member:
        number = run.started(handle).pid
        os.kill(number, signal.SIGKILL)
        run.end(handle)
    stranger = with_number(number, token)
    try:
        if member:
            cancel(run, handle)
        else:
            assert not run.core.kill(handle, 0, CAUSE_CANCEL)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="only root may choose the next pid")
@pytest.mark.parametrize("rest", [10, 100])
def test_a_tree_that_forks_is_ended_while_numbers_begin_anew(start: Start, token: str, rest: int) -> None:
    run = start(subreaper=True)
    program = quoted(FORKS_FOR_EVER.replace("TOKEN", token))
    (handle,) = run.submit(run.shell(f"{sys.executable} -S -c {program}; exec sleep {token}"))
    wait_until((run.folder / "grown").exists, "the tree to grow")
    LAST_PID.write_text(str(int(Path("/proc/sys/kernel/pid_max").read_text()) - rest))
    cancel(run, handle)
    assert carriers(token) == set()


def with_number(number: int, token: str) -> subprocess.Popen[bytes]:
    """A session leader that has this pid."""
    for _ in range(100):
        LAST_PID.write_text(str(number - 1))
        stranger = subprocess.Popen(["sleep", token], start_new_session=True)
        if stranger.pid == number:
            return stranger
        stranger.kill()  # somebody else on this machine was faster
        stranger.wait()
    pytest.skip("this machine starts too many processes")


# ---- those that shed the mark ----------------------------------------------------------------------------------------

SHEDS = """
import os, resource, sys
limit = resource.prlimit(0, 15)
assert limit[0] == limit[1] != resource.RLIM_INFINITY, limit
resource.prlimit(0, 15, (7, 7))
os.setsid()
if os.fork() == 0:
    os.execv("/bin/sleep", ["sleep", sys.argv[1]])
if sys.argv[2] == "child":
    os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
"""


def sleepers(token: str) -> set[int]:
    """Those of the carriers that have come to rest."""
    return {pid for pid in carriers(token) if process_name(pid) == "sleep"}


def process_name(pid: int) -> str:
    """Empty when the process is gone, be it between the open and the read."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


@pytest.mark.parametrize("grace_s", [0.0, 0.1])
def test_a_descendant_that_changes_its_limits_is_known_by_its_parents(start: Start, token: str, grace_s: float) -> None:
    run = start()
    shed = f"{sys.executable} -S -c {quoted(SHEDS)} {token} child"
    (handle,) = run.submit(run.shell(f"trap '' TERM; ({shed}) & sleep 1000"))
    wait_until(lambda: len(sleepers(token)) == 2, "the descendants")
    cancel(run, handle, grace_s)
    assert carriers(token) == set()


def test_a_descendant_that_changes_its_limits_is_found_in_a_tree_larger_than_the_rest_of_the_machine(
    start: Start, token: str
) -> None:
    """Then all strangers are asked for their parents, not all members for their children."""
    strangers = sum(session_of(int(name)) not in (0, os.getsid(0)) for name in os.listdir("/proc") if name.isdigit())
    if strangers > 1000:
        pytest.skip(f"this machine runs {strangers} other processes")
    run = start()
    shed = f"{sys.executable} -S -c {quoted(SHEDS)} {token} child"
    many = f"n=0; while [ $n -lt {strangers * 2 + 50} ]; do sleep 1000 & n=$((n+1)); done"
    (handle,) = run.submit(run.shell(f"{many}; ({shed}) & sleep 1000"))
    wait_until(lambda: len(sleepers(token)) == 2, "the descendants")
    cancel(run, handle)
    assert carriers(token) == set()


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def test_an_orphan_that_changes_its_limits_is_known_by_its_environment(start: Start, token: str) -> None:
    run = start(subreaper=True)
    env = [b"PATH=/usr/bin:/bin", b"PYSCHED_TASK_ID=a", b"PYSCHED_ATTEMPT=1", b"PYSCHED_NODE=" + token.encode()]
    other = [*env[:2], b"PYSCHED_ATTEMPT=2", env[3]]
    shed = f"{sys.executable} -S -c {quoted(SHEDS)} {token} orphan; exec sleep 1000"
    first, second = run.submit(run.shell(shed, env=env), run.shell(shed, env=other))
    wait_until(lambda: len(sleepers(token)) == 2, "the descendants")
    # The shells that started them carry the token until they are `sleep 1000`.
    wait_until(lambda: len(carriers(token)) == 2, "the shells to have gone on")
    # Both are children of this process now, and nothing but the environment tells them apart.
    wait_until(lambda: {parent(pid) for pid in carriers(token)} == {os.getpid()}, "the orphans to be adopted")
    cancel(run, first)
    assert len(carriers(token)) == 1
    cancel(run, second)
    assert carriers(token) == set()


HIDES = """
import os, resource, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork() == 0:
    os.setsid()
    os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
resource.prlimit(0, 15, (7, 7))
os.execve("/bin/sleep", ["sleep", sys.argv[2]], {})
"""


def test_a_descendant_behind_a_parent_that_nothing_gives_away_is_ended(
    start: Start, token: str, cgroup: Path | None
) -> None:
    """The parent has shed its mark, its session, its environment and its ancestors, but not what it forked before; and
    not its leaf, if it has one."""
    run = start(subreaper=True)
    hidden = f"200.{token[-9:]}"
    (handle,) = run.submit(run.shell(f"{sys.executable} -S -c {quoted(HIDES)} {token} {hidden}; exec sleep 1000"))
    wait_until(lambda: len(sleepers(token)) == len(sleepers(hidden)) == 1, "the descendants")
    (escaped,) = sleepers(hidden)
    try:
        cancel(run, handle, grace_s=0.1)
        assert carriers(token) == set()
        assert cgroup is None or carriers(hidden) == set()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(escaped, signal.SIGKILL)
        wait_until(lambda: process_state(escaped) == "X", "the other one to be collected")


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


NESTED = """
import sys
from pysched._core import CAUSE_CANCEL, EXITED, STARTED, Core, Launch
core = Core(lanes=1, workers=8, subreaper=True)
script = f"(setsid -f sleep {sys.argv[1]}); exec sleep {sys.argv[1]}".encode()
core.submit([Launch(handle=i, priority=0, rank=0, sequence=i, argv=[b"sh", b"-c", script], candidates=[b"/bin/sh"],
    env=[b"PATH=/usr/bin:/bin"], cwd=b"/", stdout=b"/dev/null", stderr=b"/dev/null") for i in range(2)])
sys.stdin = open(sys.argv[2])
sys.stdin.readline()
core.kill(0, 0.0, CAUSE_CANCEL)
while not any(event.kind == EXITED and event.handle == 0 for event in core.poll(10)):
    pass
print("ended", flush=True)
sys.stdin.readline()
"""


def test_the_attempts_of_a_nested_scheduler_are_told_apart_and_all_end_with_it(start: Start, token: str) -> None:
    run = start()
    fifo = run.folder / "fifo"
    os.mkfifo(fifo)
    (handle,) = run.submit(run.python(NESTED, token, str(fifo)))
    with fifo.open("w") as go:
        # The sleepers and their parent, which has the token among its arguments.
        wait_until(lambda: len(carriers(token)) == 5, "the trees of the nested scheduler")
        go.write("\n")
        go.flush()
        run.started(handle)
        wait_until(lambda: run.output(handle) == "ended\n", "the nested kill")
        assert len(carriers(token)) == 3
        cancel(run, handle)
    assert carriers(token) == set()


# ---- what does not die -----------------------------------------------------------------------------------------------

FREEZER = Path("/sys/fs/cgroup/freezer")


@pytest.fixture
def freezer(token: str) -> Iterator[Path]:
    """A cgroup (v1) whose processes KILL does not reach while they are frozen."""
    if not os.access(FREEZER, os.W_OK) or not (FREEZER / "cgroup.procs").exists():
        pytest.skip("needs root and a freezer cgroup, to have a process that does not die")
    group = FREEZER / f"pysched-test-{token}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_until(lambda: (group / "cgroup.procs").read_text() == "", "the cgroup to be empty")
        group.rmdir()


@pytest.mark.parametrize("who", ["leader", "descendant"])
def test_what_survives_kill_is_told_and_keeps_its_worker(start: Start, token: str, freezer: Path, who: str) -> None:
    run = start(workers=1)
    first, second = run.submit(run.shell(f"sleep {token} & exec sleep {token}"), run.launch("/bin/true"))
    leader = run.started(first).pid
    wait_until(lambda: len(carriers(token)) == 2, "the tree")
    victim = leader if who == "leader" else (carriers(token) - {leader}).pop()
    (freezer / "cgroup.procs").write_text(str(victim))
    (freezer / "freezer.state").write_text("FROZEN")
    wait_until(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n", "the process to be frozen")
    assert run.core.kill(first, 0, CAUSE_CANCEL)
    event = run.end(first)
    assert (event.kind, event.cause, event.survivors, event.status) == (EXITED, CAUSE_CANCEL, 1, signal.SIGKILL)
    assert (run.core.running, run.core.depths()) == (1, (0, 1, 0))
    (freezer / "freezer.state").write_text("THAWED")
    assert run.end(second).status == 0
    assert [e.kind for e in run.events if e.handle == first].count(EXITED) == 1
    assert run.core.running == 0


# ---- the process that has the core -----------------------------------------------------------------------------------

OWN = """
import ctypes
from pysched._core import Core
def adopts():
    value = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0) == 0
    return value.value
Core(lanes=1, workers=1).close()
assert adopts() == 0
core = Core(lanes=1, workers=1, subreaper=True)
assert adopts() == 1
core.close()
assert adopts() == 0
"""


def test_only_a_core_that_is_told_to_makes_its_process_a_subreaper_and_only_while_it_is_open(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.python(OWN))
    assert run.end(handle).status == 0, (run.folder / f"{handle}.err").read_text()


def test_marks_are_the_launches_own_or_all_different(start: Start) -> None:
    run = start()
    show = (sys.executable, "-S", "-c", "import resource; print(resource.prlimit(0, 15)[1])")
    given, *free = run.submit(run.launch(*show, mark=12345), *(run.launch(*show) for _ in range(3)))
    run.ends([given, *free])
    assert int(run.output(given)) == 2**62 + 12345
    assert len({run.output(handle) for handle in free}) == 3
    with pytest.raises(ValueError, match="mark"):
        run.launch("/bin/true", mark=2**61)
