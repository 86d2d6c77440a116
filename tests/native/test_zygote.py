"""Jobs that a zygote forks: processes like any other; what they do, and what becomes of the zygote, harms no other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from pysched._core import CAUSE_CANCEL, CAUSE_TIMEOUT, EXITED, SPAWN_FAILED, WITHDRAWN, Launch
from pysched.executors import zygote
from pysched.executors.launch import program_file
from pysched.executors.zygote import Zygote

from .conftest import Run, alive, few_descriptors, process_state, wait_until

JOBS = """
import ctypes, os, random, signal, subprocess, sys, threading, time

def add(a, b=1):
    return a + b

def about():
    return {
        "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "group": os.getpgid(0), "cwd": os.getcwd(),
        "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1], "environment": dict(os.environ),
    }

def randoms():
    import numpy
    return [random.random(), float(numpy.random.rand())]

def draws_and_forks():
    import json
    receive, send = os.pipe()
    if os.fork() == 0:
        os.write(send, json.dumps(randoms()).encode())
        os._exit(0)
    os.wait()
    return [*randoms(), *json.loads(os.read(receive, 1000))]

def interrupts_itself():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        return "interrupted"

def processors():
    return sorted(os.sched_getaffinity(0))

def multiplies_with():
    import numpy
    from pysched.ml import threads
    a = numpy.ones((1000, 1000))
    total = float((a @ a).sum())
    return [total, len(os.listdir("/proc/self/task")), len(threads.setters())]

def fails():
    raise LookupError("no such thing")

def loops():
    child = subprocess.Popen(["sleep", "1000"])
    with open("child.tmp", "w") as file:
        file.write(str(child.pid))
    os.replace("child.tmp", "child")
    while True:
        pass

def append(name, line):
    with open(name, "a") as file:
        file.write(f"{line}\\n")

def names_its_threads():
    libc = ctypes.CDLL(None)
    def rename():
        assert libc.pthread_setname_np(ctypes.c_ulong(threading.get_ident()), b"renamed") == 0
        with open(f"/proc/self/task/{threading.get_native_id()}/comm") as file:
            assert file.read() == "renamed\\n"
    rename()
    thread = threading.Thread(target=rename)
    thread.start()
    thread.join()
    return True

def multiplies():
    import numpy
    a = numpy.ones((300, 300))
    results = []
    threads = [threading.Thread(target=lambda: results.append(float((a @ a).sum()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results

def leaves_things():
    import atexit
    atexit.register(lambda: print("at exit"))
    threading.Thread(target=lambda: (time.sleep(0.05), print("the thread"))).start()
    print("no newline", end=" ")
"""


class Warm:
    """A Run whose warm jobs come from `zygote`."""

    def __init__(
        self, run: Run, folder: Path, preload: Sequence[str], path: Path | None, table: Path | None = None
    ) -> None:
        self.run = run
        self.folder = folder
        environ = {"PATH": "/usr/bin:/bin"} | ({"PYTHONPATH": str(path)} if path is not None else {})
        self.zygote = Zygote(
            lanes=run.core.lanes,
            preload=preload,
            environ=environ,
            meet=run.core.meet_zygote,
            awaited_s=run.core.awaits_zygote_s,
            table=str(table or ""),
        )

    def launch(
        self, target: str, params: dict[str, Any] | None = None, extra: Sequence[bytes] = (), **given: object
    ) -> Launch:
        launch = self.run.launch("entrypoint", target, **given)
        env = [
            b"PATH=/usr/bin:/bin",
            b"PYSCHED_RESULT=" + os.fsencode(self.folder / f"{launch.handle}.result"),
            b"PYSCHED_PARAMS=" + json.dumps(params or {}).encode(),
            *extra,
        ]
        fields = {"handle": launch.handle, "env": env, "warm": True}
        return self.run.launch("entrypoint", target, **{**given, **fields})

    def submit(self, target: str, params: dict[str, Any] | None = None, **given: Any) -> int:
        return self.run.submit(self.launch(target, params, **given))[0]

    def end(self, handle: int) -> int:
        """The exit code, or the negative signal."""
        event = self.run.end(handle)
        assert event.kind == EXITED, event
        return os.waitstatus_to_exitcode(event.status)

    def result(self, handle: int) -> Any:
        assert self.end(handle) == 0, self.errors(handle)
        return json.loads(self.left(handle))

    def error(self, handle: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.left(handle))["error"]
        return found

    def left(self, handle: int) -> bytes:
        """As its result, by whatever way."""
        event = self.run.end(handle)
        return (self.folder / f"{handle}.result").read_bytes() if event.left_result else event.result or b""

    def errors(self, handle: int) -> str:
        return (self.folder / f"{handle}.err").read_text()

    def pid(self) -> int:
        """Of the zygote, awaited."""
        wait_until(lambda: self.zygote.pid is not None, "a zygote")
        return self.zygote.pid or 0


Make = Callable[..., Warm]


@pytest.fixture
def warm(start: Callable[..., Run], tmp_path: Path) -> Iterator[Make]:
    """A maker of `Warm`s: warm(lanes=, workers=, preload=, path=, begin=); JOBS lie as `jobs` in the working folder."""
    (tmp_path / "jobs.py").write_text(JOBS)
    made: list[Warm] = []

    def make(
        *, preload: Sequence[str] = ("numpy",), path: Path | None = None, begin: bool = True, **options: Any
    ) -> Warm:
        made.append(Warm(start(**options), tmp_path, preload, path))
        if begin:
            made[-1].zygote.start()
        return made[-1]

    yield make
    for one in made:
        one.zygote.stop()


def test_a_job_is_a_process_of_its_own_and_our_child(warm: Make, tmp_path: Path) -> None:
    jobs = warm()
    handle = jobs.submit("jobs:about")
    told = jobs.result(handle)
    event = jobs.run.end(handle)
    assert told["pid"] == told["session"] == told["group"] == event.pid
    assert told["parent"] == os.getpid()
    assert told["cwd"] == str(tmp_path)
    assert told["descriptors"] == ["0", "1", "2"]
    assert set(told["environment"]) == {"PATH", "PYSCHED_RESULT", "PYSCHED_PARAMS", "PYSCHED_LANE"}
    assert event.max_rss_kb > 1_000
    assert event.cpu_ns > 0
    assert jobs.result(jobs.submit("jobs:add", {"a": 2})) == 3


def test_every_lane_has_its_own_way_to_the_zygote(warm: Make) -> None:
    jobs = warm(lanes=3, workers=6)
    lanes: set[int] = set()

    def used() -> bool:
        handles = [jobs.submit("jobs:add", {"a": number}) for number in range(12)]
        assert [jobs.result(handle) for handle in handles] == list(range(1, 13))
        lanes.update(jobs.run.end(handle).lane for handle in handles)
        return lanes == {0, 1, 2}

    wait_until(used, "a job of each lane")


def test_jobs_draw_different_numbers(warm: Make) -> None:
    jobs = warm()
    drawn = [jobs.result(jobs.submit("jobs:randoms")) for _ in range(3)]
    assert len({number for pair in drawn for number in pair}) == 6


def test_what_a_job_forks_itself_draws_other_numbers_than_the_job(warm: Make) -> None:
    """Its random numbers are seeded after that fork, too, as in any Python program."""
    jobs = warm()
    own, numpys, forked, _ = jobs.result(jobs.submit("jobs:draws_and_forks"))
    assert own != forked
    assert own != numpys


def test_a_job_gets_interrupts_and_the_zygote_none(warm: Make) -> None:
    jobs = warm()
    assert jobs.result(jobs.submit("jobs:interrupts_itself")) == "interrupted"
    status = Path(f"/proc/{jobs.pid()}/status").read_text()
    (blocked,) = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert int(blocked, 16) >> signal.SIGINT - 1 & 1


def test_variables_are_the_requests_even_where_one_is_said_twice(warm: Make) -> None:
    """The last one counts, also if that is what the zygote has itself."""
    jobs = warm()
    given = [b"PATH=/elsewhere", b"OMP_NUM_THREADS=2", b"PATH=/usr/bin:/bin", b"OMP_NUM_THREADS=1"]
    environment = jobs.result(jobs.submit("jobs:about", extra=given))["environment"]
    assert (environment["PATH"], environment["OMP_NUM_THREADS"]) == ("/usr/bin:/bin", "1")
    assert "OPENBLAS_NUM_THREADS" not in environment
    assert "LD_BIND_NOW" not in environment


@pytest.mark.parametrize("reuse", [0, 7])
def test_jobs_that_ask_for_processors_are_pinned_if_that_is_wanted(warm: Make, reuse: int) -> None:
    """Also those of a reused worker, which is let free for a call that asks for none."""
    jobs = warm(affinity=True)
    assert len(jobs.result(jobs.submit("jobs:processors", cpus=1000, reuse=reuse))) == 1
    assert jobs.result(jobs.submit("jobs:processors", reuse=reuse)) == sorted(os.sched_getaffinity(0))
    assert len(jobs.result(jobs.submit("jobs:processors", cpus=500, reuse=reuse))) == 1


def test_threads_of_libc_and_of_blas_are_right_after_the_fork(warm: Make) -> None:
    jobs = warm()
    assert jobs.result(jobs.submit("jobs:names_its_threads"))
    assert jobs.result(jobs.submit("jobs:multiplies")) == [300.0**3] * 4
    assert Path(f"/proc/{jobs.pid()}/comm").read_text() != "renamed\n"


@pytest.mark.parametrize("reuse", [0, 7])
def test_libraries_compute_with_as_many_threads_as_a_job_is_told(warm: Make, reuse: int) -> None:
    """Though the zygote had to load them with one."""
    jobs = warm(workers=1, lanes=1)
    for count in (1, 3):
        extra = [b"OMP_NUM_THREADS=%d" % count]
        total, running, told = jobs.result(jobs.submit("jobs:multiplies_with", extra=extra, reuse=reuse))
        assert (total, running) == (1e9, count)
        assert told


def test_a_job_ends_like_a_program(warm: Make) -> None:
    jobs = warm()
    handle = jobs.submit("jobs:leaves_things")
    assert jobs.end(handle) == 0
    assert jobs.run.output(handle) == "no newline the thread\nat exit\n"


@pytest.mark.parametrize(
    ("target", "params", "code", "said"),
    [
        ("jobs:fails", {}, 1, "LookupError: no such thing"),
        ("sys:exit", {}, 0, ""),
        ("jobs:sys.exit", {}, 0, ""),
        ("jobs:missing", {}, 2, "'jobs' has no attribute 'missing'"),
        ("absent:f", {}, 2, "no module named 'absent'"),
        ("jobs:os", {}, 2, "is not callable"),
        ("jobs:add", {"c": 1}, 2, "params do not fit add(a, b=1)"),
        ("jobs:add", {}, 2, "missing a required argument: 'a'"),
        ("jobs:add", {"a": "x"}, 1, "TypeError"),
        ("os:abort", {}, -signal.SIGABRT, ""),
        ("builtins:set", {}, 1, "not JSON"),
    ],
)
def test_what_goes_wrong_is_said(warm: Make, target: str, params: dict[str, Any], code: int, said: str) -> None:
    jobs = warm()
    handle = jobs.submit(target, params)
    assert jobs.end(handle) == code
    assert said in jobs.errors(handle)
    assert jobs.result(jobs.submit("jobs:add", {"a": 2})) == 3


def test_an_exception_is_the_result(warm: Make) -> None:
    jobs = warm()
    handle = jobs.submit("jobs:fails")
    assert jobs.end(handle) == 1
    error = jobs.error(handle)
    assert (error["type"], error["message"]) == ("LookupError", "no such thing")
    assert error["traceback"].startswith("Traceback")
    assert "in fails" in error["traceback"]
    assert "zygote.py" not in error["traceback"]


def test_a_timeout_ends_a_job_and_its_children(warm: Make, tmp_path: Path) -> None:
    jobs = warm()
    handle = jobs.submit("jobs:loops", timeout_s=1.0, grace_s=30.0)
    event = jobs.run.end(handle)
    assert (event.cause, event.status) == (CAUSE_TIMEOUT, signal.SIGTERM)
    if (tmp_path / "child").exists():  # on a crowded machine the time may have been over before
        assert not alive(int((tmp_path / "child").read_text()))


def test_a_cancel_ends_a_job_that_runs(warm: Make, tmp_path: Path) -> None:
    jobs = warm()
    handle = jobs.submit("jobs:loops")
    wait_until((tmp_path / "child").exists, "the job's child")
    assert jobs.run.core.kill(handle, 0.0, CAUSE_CANCEL)
    event = jobs.run.end(handle)
    assert (event.cause, event.status) == (CAUSE_CANCEL, signal.SIGKILL)
    assert not alive(int((tmp_path / "child").read_text()))


def test_a_job_waits_for_a_zygote_and_can_be_cancelled_meanwhile(warm: Make) -> None:
    jobs = warm(begin=False, workers=2)
    handles = [jobs.submit("jobs:add", {"a": number}) for number in range(3)]
    wait_until(lambda: jobs.run.core.running == 2, "two that are starting")
    assert jobs.run.core.kill(handles[0], 5.0, CAUSE_CANCEL)
    event = jobs.run.end(handles[0])
    assert (event.kind, event.cause) == (WITHDRAWN, CAUSE_CANCEL)
    jobs.zygote.start()
    assert [jobs.result(handle) for handle in handles[1:]] == [2, 3]


def test_a_cancel_reaches_a_job_that_was_asked_for(warm: Make) -> None:
    jobs = warm()
    jobs.result(jobs.submit("jobs:add", {"a": 1}))
    pid = jobs.pid()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) == "T", "the stop")
    handle = jobs.submit("jobs:loops")
    wait_until(lambda: jobs.run.core.awaits_zygote_s() > 0, "the request")
    jobs.run.core.kill(handle, 0.0, CAUSE_CANCEL)
    os.kill(pid, signal.SIGCONT)
    event = jobs.run.end(handle)
    assert event.cause == CAUSE_CANCEL
    assert event.kind == EXITED
    wait_until(lambda: jobs.run.core.running == 0, "the slot")


@pytest.mark.parametrize("reuse", [0, 1])
@pytest.mark.parametrize("given", [{"cwd": b"/nowhere"}, None], ids=["it cannot be started", "the zygote dies"])
def test_a_cancelled_job_that_never_began_is_withdrawn(warm: Make, given: dict[str, bytes] | None, reuse: int) -> None:
    jobs = warm(workers=1)
    jobs.result(jobs.submit("jobs:add", {"a": 1}))
    pid = jobs.pid()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) == "T", "the stop")
    handle = jobs.submit("jobs:add", {"a": 1}, reuse=reuse, **(given or {}))
    wait_until(lambda: jobs.run.core.awaits_zygote_s() > 0, "the request")
    jobs.run.core.kill(handle, 0.0, CAUSE_CANCEL)
    wait_until(lambda: jobs.run.core.counters()["killed"] == 1, "the lane to know")
    os.kill(pid, signal.SIGKILL if given is None else signal.SIGCONT)
    event = jobs.run.end(handle)
    assert (event.kind, event.cause) == (WITHDRAWN, CAUSE_CANCEL)
    assert jobs.result(jobs.submit("jobs:add", {"a": 2}, reuse=reuse)) == 3  # the slot is free


@pytest.mark.parametrize("reuse", [0, 1])
def test_shortage_of_descriptors_delays_jobs_and_fails_none(warm: Make, reuse: int) -> None:
    jobs = warm()
    jobs.result(jobs.submit("jobs:add", {"a": 1}))
    launch = jobs.launch("jobs:add", {"a": 2}, reuse=reuse)
    with few_descriptors(0):
        jobs.run.submit(launch)
        wait_until(lambda: jobs.run.core.counters()["backed_off"] > 0, "a vain try")
    assert jobs.result(launch.handle) == 3


@pytest.mark.parametrize(
    ("given", "step"),
    [({"cwd": b"/nowhere"}, "cwd"), ({"stdout": b"/nowhere/out"}, "stdout"), ({"stderr": b"/nowhere/err"}, "stderr")],
)
def test_what_cannot_be_started_is_said(warm: Make, given: dict[str, bytes], step: str) -> None:
    jobs = warm(workers=1)
    event = jobs.run.end(jobs.submit("jobs:add", {"a": 1}, **given))
    assert (event.kind, event.step, event.errno) == (SPAWN_FAILED, step, 2)
    assert jobs.result(jobs.submit("jobs:add", {"a": 2})) == 3


def test_no_job_is_lost_or_run_twice_when_zygotes_die(
    warm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "_UNBORN_S", 60.0)  # a busy machine may let nobody end for longer than that
    before = psutil.Process().children()  # of other tests' servers
    jobs = warm(lanes=2, workers=16)
    count = 120
    handles = [jobs.submit("jobs:append", {"name": f"ran.{number}", "line": "x"}) for number in range(count)]
    for ended in (0, 20, 40):
        wait_until(lambda: jobs.run.core.counters()["exited"] >= ended, "some ends")  # noqa: B023
        with contextlib.suppress(ProcessLookupError):  # just replaced
            os.kill(jobs.pid(), signal.SIGKILL)
    jobs.run.ends(handles)
    assert [jobs.end(handle) for handle in handles] == [0] * count
    assert [(tmp_path / f"ran.{number}").read_text() for number in range(count)] == ["x\n"] * count
    jobs.zygote.stop()
    assert not set(psutil.Process().children()) - set(before)  # what was forked in vain is collected


def test_a_zygote_that_hangs_is_replaced(warm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "HUNG_S", 1.0)
    monkeypatch.setattr(zygote, "LOOK_S", 0.1)
    jobs = warm()
    jobs.result(jobs.submit("jobs:add", {"a": 1}))
    pid = jobs.pid()
    os.kill(pid, signal.SIGSTOP)
    assert jobs.result(jobs.submit("jobs:add", {"a": 2})) == 3
    assert not alive(pid)


def test_a_module_that_changes_on_disk_is_imported_again(warm: Make, tmp_path: Path) -> None:
    module = tmp_path / "early" / "mine.py"
    module.parent.mkdir()
    module.write_text("def f():\n    return 'old'\n")
    jobs = warm(preload=["mine"], path=module.parent)
    assert jobs.result(jobs.submit("mine:f")) == "old"
    pid = jobs.pid()
    module.write_text("def f():\n    return 'newer'\n")

    def new() -> bool:
        return bool(jobs.result(jobs.submit("mine:f")) == "newer")

    wait_until(new, "the new version")
    assert jobs.pid() == pid


def test_a_preload_that_fails_is_one_clear_error_until_it_is_mended(warm: Make, tmp_path: Path) -> None:
    jobs = warm(preload=["mine"], path=tmp_path / "early")
    handle = jobs.submit("jobs:add", {"a": 1})
    assert jobs.end(handle) == 2
    said = "preload: 'mine' cannot be imported: ModuleNotFoundError: No module named 'mine'"
    assert jobs.errors(handle) == f"entrypoint: {said}\n"
    assert jobs.error(handle)["message"] == said
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "mine.py").write_text("")

    def mended() -> bool:
        return jobs.end(jobs.submit("jobs:add", {"a": 1})) == 0

    wait_until(mended, "the next try")


def test_a_preload_with_threads_is_refused(warm: Make, tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    jobs = warm(preload=["busy"], path=tmp_path)
    handle = jobs.submit("jobs:add", {"a": 1})
    assert jobs.end(handle) == 2
    assert re.search(r"'busy' leaves \d+ threads running", jobs.errors(handle))  # a sanitizer has one of its own


def test_a_preload_that_kills_the_zygote_is_told_to_the_jobs(
    warm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    jobs = warm(preload=["deadly"], path=tmp_path)
    handle = jobs.submit("jobs:add", {"a": 1})
    assert jobs.end(handle) == 2
    assert "the zygote ended by signal SIGKILL while it imported deadly" in jobs.errors(handle)


def test_the_zygote_ends_with_its_keeper(warm: Make) -> None:
    jobs = warm()
    jobs.result(jobs.submit("jobs:add", {"a": 1}))
    pid = jobs.pid()
    jobs.zygote.stop()
    assert not alive(pid)


def test_a_zygote_whose_node_has_died_ends_without_a_word() -> None:
    status, told = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    os.close(status)
    with ours, theirs:
        words = [sys.executable, program_file("zygote"), str(told), str(theirs.fileno()), "", ""]
        done = subprocess.run(words, pass_fds=[told, theirs.fileno()], capture_output=True, timeout=60, check=False)
    os.close(told)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
