"""What a child gets, and what is told of its start and end."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pysched._core import CAUSE_NONE, EXITED, SPAWN_FAILED, STARTED, Event

from .conftest import Run, alive, wait_until

Start = Callable[..., Run]


def code(event: Event) -> int:
    """Exit code, or the negative number of the signal."""
    assert event.kind == EXITED
    return os.waitstatus_to_exitcode(event.status)


def test_exit_codes_and_signals_are_reported(start: Start) -> None:
    run = start()
    handles = run.submit(
        run.launch("/bin/true"), run.shell("exit 7"), run.shell("kill -9 $$"), run.shell("kill -11 $$")
    )
    assert [code(event) for event in run.ends(handles)] == [0, 7, -signal.SIGKILL, -signal.SIGSEGV]
    counters = run.core.counters()
    assert (counters["submitted"], counters["started"], counters["exited"], counters["failed"]) == (4, 4, 4, 3)
    assert run.core.running == 0
    assert run.core.depths() == (0, 0, 0)


def test_started_comes_before_exited_and_both_carry_the_times(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.launch("/bin/true"))
    end = run.end(handle)
    kinds = [event.kind for event in run.events if event.handle == handle]
    assert kinds == [STARTED, EXITED]
    first = run.started(handle)
    assert first.pid == end.pid > 0
    assert 0 < end.queued_ns <= end.started_ns == first.started_ns <= end.ended_ns
    assert end.wait_ns == first.wait_ns >= 0
    assert end.run_ns > 0
    assert (end.cause, end.errno, end.step) == (CAUSE_NONE, 0, None)


def test_cpu_time_and_memory_are_the_childs(start: Start) -> None:
    run = start()
    own_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    need_kb = own_kb + 100_000
    burn = f"import time\nwhile time.process_time() < 0.2: pass\nx = b'x' * ({need_kb} << 10)"
    small, big = run.submit(run.launch("/bin/true"), run.launch(sys.executable, "-S", "-c", burn))
    assert run.end(big).cpu_ns >= 200_000_000
    assert run.end(big).max_rss_kb >= need_kb
    # Never this process's own memory, which Linux would report for a child that needs less.
    assert run.end(small).max_rss_kb == 0


NAME_DESCRIPTORS = """
import os
names = []
for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
    try:
        names.append(f"{fd}={os.readlink(f'/proc/self/fd/{fd}')}")
    except FileNotFoundError:
        pass  # the descriptor of listdir itself
print(*names)
"""


def test_a_child_has_three_descriptors(start: Start) -> None:
    run = start()
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    try:
        (handle,) = run.submit(run.launch(sys.executable, "-S", "-c", NAME_DESCRIPTORS))
        assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()
    finally:
        os.close(reader)
        os.close(writer)
    out, err = run.folder / f"{handle}.out", run.folder / f"{handle}.err"
    assert run.output(handle) == f"0=/dev/null 1={out} 2={err}\n"


def test_a_child_starts_with_fresh_signals(start: Start) -> None:
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        run = start()
        (handle,) = run.submit(run.launch("/bin/cat", "/proc/self/status"))
        run.end(handle)
    finally:
        signal.signal(signal.SIGUSR1, previous)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    status = dict(line.split(":\t", 1) for line in run.output(handle).splitlines())
    assert {status["SigBlk"], status["SigIgn"], status["SigCgt"]} == {"0" * 16}


WITHOUT_CLONE3 = """
import ctypes, errno, signal, struct
from pysched._core import EXITED, SPAWN_FAILED, Core, Launch
CLONE3, LOAD, EQUALS, RETURN = 435, 0x20, 0x15, 0x06  # seccomp(2), <linux/bpf_common.h>
program = b"".join(struct.pack("HBBI", *line) for line in (
    (LOAD, 0, 0, 0), (EQUALS, 0, 1, CLONE3), (RETURN, 0, 0, 0x00050000 | errno.ENOSYS), (RETURN, 0, 0, 0x7FFF0000)))
place = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(place)))
assert libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
assert libc.syscall(CLONE3, 0, 0) == -1 and ctypes.get_errno() == errno.ENOSYS
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, print)
core = Core(lanes=1, workers=1)
core.submit([Launch(handle=1, priority=0, rank=0, sequence=0, argv=[b"cat", b"/proc/self/status"],
    candidates=[b"/bin/cat"], env=[], cwd=b"/", stdout=b"LOG", stderr=b"/dev/null")])
ends = []
while not ends:
    ends = [event for event in core.poll(10) if event.kind in (EXITED, SPAWN_FAILED)]
print(ends[0].status, ends[0].step)
"""


def test_a_container_that_refuses_clone3_makes_no_difference(start: Start) -> None:
    run = start()
    log = run.folder / "status"
    script = WITHOUT_CLONE3.replace("LOG", str(log))
    (handle,) = run.submit(run.python(script))
    assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()
    assert run.output(handle) == "0 None\n"
    status = dict(line.split(":\t", 1) for line in log.read_text().splitlines())
    assert {status["SigBlk"], status["SigIgn"], status["SigCgt"]} == {"0" * 16}


def test_the_end_of_a_child_disturbs_no_other_thread(start: Start) -> None:
    """A signal that waits for the process would wake the main thread, whatever it sleeps in."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        run = start()
        run.ends(run.submit(*(run.launch("/bin/true") for _ in range(4))))
        assert signal.SIGCHLD not in signal.sigpending()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_child_leads_its_own_session_and_group(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.launch(sys.executable, "-S", "-c", "import os; print(os.getsid(0), os.getpgid(0))"))
    run.end(handle)
    pid = run.started(handle).pid
    assert run.output(handle) == f"{pid} {pid}\n"


def test_the_environment_is_what_was_given_and_the_lane(start: Start) -> None:
    run = start(lanes=3)
    handles = run.submit(*(run.launch("/usr/bin/env", env=[b"A=1", b"B=x=y", b"C="]) for _ in range(6)))
    for handle in handles:
        lane = run.end(handle).lane
        assert run.output(handle).splitlines() == ["A=1", "B=x=y", "C=", f"PYSCHED_LANE={lane}"]
        assert 0 <= lane < 3


def test_output_is_appended_to_and_created_for_the_owner(start: Start, tmp_path: Path) -> None:
    run = start()
    log = tmp_path / "log"
    for text in ("one", "two"):
        (handle,) = run.submit(run.shell(f"pwd; echo {text} >&2", stdout=bytes(log), stderr=bytes(log)))
        run.end(handle)
    assert log.read_text() == f"{tmp_path}\none\n{tmp_path}\ntwo\n"
    assert log.stat().st_mode & 0o137 == 0


LIMITS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
from pysched._core import EXITED, Core, Launch
core = Core(lanes=1, workers=1)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (200, 200)
core.submit([Launch(handle=1, priority=0, rank=0, sequence=0, argv=[b"sh", b"-c", b"ulimit -Sn; ulimit -Hn"],
    candidates=[b"/bin/sh"], env=[], cwd=b"/", stdout=sys.argv[1].encode(), stderr=b"/dev/null")])
while not any(event.kind == EXITED for event in core.poll(10)):
    pass
"""


def test_a_child_starts_with_the_original_limit_of_open_files(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.python(LIMITS, str(run.folder / "limits")))
    assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()
    assert (run.folder / "limits").read_text() == "100\n200\n"


def children() -> set[int]:
    """Of this process, zombies included; earlier tests may have left some that are not ours to judge."""
    lists = [task / "children" for task in Path("/proc/self/task").iterdir()]
    return {int(pid) for file in lists if file.exists() for pid in file.read_text().split()}


@pytest.mark.parametrize(
    ("given", "step", "error"),
    [
        ({"candidates": [b"/nowhere/program"]}, "exec", errno.ENOENT),
        ({"candidates": [b"/etc/passwd"]}, "exec", errno.EACCES),
        ({"candidates": [b"/etc/passwd", b"/nowhere"]}, "exec", errno.EACCES),
        ({"cwd": b"/nowhere"}, "cwd", errno.ENOENT),
        ({"cwd": b"/etc/passwd"}, "cwd", errno.ENOTDIR),
        ({"stdout": b"/nowhere/log"}, "stdout", errno.ENOENT),
        ({"stderr": b"/etc"}, "stderr", errno.EISDIR),
        ({"argv": [b"true", b"x" * (4 << 20)]}, "exec", errno.E2BIG),
    ],
)
def test_a_failed_start_says_which_step_and_why(start: Start, given: dict[str, object], step: str, error: int) -> None:
    run = start()
    before = children()
    (handle,) = run.submit(run.launch("/bin/true", **given))
    event = run.end(handle)
    assert (event.kind, event.step, event.errno) == (SPAWN_FAILED, step, error)
    assert event.ended_ns >= event.queued_ns > 0
    assert [e.kind for e in run.events] == [SPAWN_FAILED]
    assert run.core.counters()["spawn_failed"] == 1
    assert run.core.running == 0
    assert children() <= before  # the one that failed is collected


def test_a_log_that_is_a_symbolic_link_is_refused(start: Start, tmp_path: Path) -> None:
    run = start()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (handle,) = run.submit(run.launch("/bin/true", stdout=bytes(tmp_path / "link")))
    assert (run.end(handle).step, run.end(handle).errno) == ("stdout", errno.ELOOP)
    assert not (tmp_path / "target").exists()


def test_candidates_are_tried_in_order_and_a_file_without_format_runs_under_sh(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1 $2"\n')
    script.chmod(0o755)
    run = start()
    paths = [b"/nowhere/a", b"/etc/passwd/b", bytes(script), b"/bin/false"]
    (handle,) = run.submit(run.launch("program", "one", "two", candidates=paths))
    assert code(run.end(handle)) == 0
    assert run.output(handle) == f"{script} one two\n"


def test_argv0_may_differ_from_the_path(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.launch("name", "-c", "echo $0", candidates=[b"/bin/sh"]))
    run.end(handle)
    assert run.output(handle) == "name\n"


def test_what_outlives_the_leader_in_its_group_is_ended(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.shell("sleep 1000 & echo $!"))
    assert code(run.end(handle)) == 0
    pid = int(run.output(handle))
    wait_until(lambda: not alive(pid), "the end of the sleeper")


REAPED_BY_THE_KERNEL = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from pysched._core import EXITED, Core, Launch
core = Core(lanes=1, workers=1)
core.submit([Launch(handle=1, priority=0, rank=0, sequence=0, argv=[b"true"], candidates=[b"/bin/true"],
    env=[], cwd=b"/", stdout=b"/dev/null", stderr=b"/dev/null")])
ends = []
while not ends:
    ends = [event for event in core.poll(10) if event.kind == EXITED]
print(ends[0].status, ends[0].errno)
"""


def test_a_child_that_somebody_else_reaped_is_told_as_such(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.python(REAPED_BY_THE_KERNEL))
    assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()
    assert run.output(handle) == f"-1 {errno.ECHILD}\n"
