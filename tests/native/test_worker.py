"""Reused workers: one process for the calls of many attempts, each of which is recorded as if it had its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pysched._core import CAUSE_CANCEL, CAUSE_TIMEOUT, EXITED, ROW_ENDED, SPAWN_FAILED, AttemptTable
from pysched.ml import _sibling, reuse

from .conftest import Run, alive, process_state, wait_until
from .test_zygote import Warm

JOBS = """
import atexit, os, signal, subprocess, sys, threading, time

count = 0

def pid():
    return os.getpid()

def process():
    with open("/proc/self/stat") as file:
        return [os.getpid(), int(file.read().rpartition(")")[2].split()[19])]  # and when it began: pids come again

def counts(step=1):
    global count
    count += step
    return [os.getpid(), count]

def about():
    return {
        "pid": os.getpid(), "cwd": os.getcwd(), "environment": dict(os.environ), "umask": os.umask(0o022),
        "descriptors": sorted(os.listdir("/proc/self/fd"))[:-1], "path": list(sys.path),
        "limit": __import__("resource").prlimit(0, 15),
    }

def spoils():
    os.umask(0o077)
    os.environ["SPOILED"] = "yes"
    sys.path.insert(0, "/spoiled")
    os.chdir("/")
    sys.stdout = None
    return os.getpid()

def says(text):
    print(text)
    print(text.upper(), file=sys.stderr)
    return os.getpid()

def burns(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return os.getpid()

def fails():
    raise LookupError(f"{os.getpid()}")

def leaves_a_thread():
    threading.Thread(target=lambda: (time.sleep(0.05), print("the thread"))).start()
    return os.getpid()

def leaves_a_child():
    child = subprocess.Popen(["sleep", "1000"])
    return [os.getpid(), child.pid]

def closes_its_output():
    sys.stdout.close()
    return os.getpid()

def waits():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open("child.tmp", "w") as file:
        file.write(f"{os.getpid()} {child.pid}")
    os.replace("child.tmp", "child")
    while True:
        time.sleep(1)

def grows(size):
    global kept
    kept = b"x" * size
    return os.getpid()

def at_exit(name):
    atexit.register(lambda: open(name, "w").close())
    return os.getpid()

def ends_in_its_own_time():
    signal.signal(signal.SIGTERM, lambda *_: open("told", "w").close())
    open("deaf", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    return os.getpid()

def drops_its_socket():
    os.close(3)
    return os.getpid()

def returns(size):
    return "x" * size

def leaves(text):
    with open(os.environ["PYSCHED_RESULT"], "w") as file:
        file.write(text)

def leaves_and_returns():
    leaves('"left"')
    with open(os.environ["PYSCHED_PROGRESS"], "w") as file:
        file.write("0.5")
    return "returned"

def starts_a_daemon():
    # Whose parent ends at once, and is waited for: nobody here knows of it afterwards.
    subprocess.run("(read line < gate; echo late) & echo $! > daemon", shell=True)
    return os.getpid()

def redirects_its_output(text):
    os.dup2(os.open("elsewhere", os.O_WRONLY | os.O_CREAT), 1)
    os.write(1, text.encode())
    return os.getpid()

def writes_below_python(text):
    os.write(1, text.encode())
    return os.getpid()

def variables(name):
    # As Python and as libc have it.
    import ctypes
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return [os.environ.get(name), (getenv(name.encode()) or b"").decode()]

def spoils_variables():
    os.environ["MINE"] = "spoiled"
    os.environ["PYSCHED_PARAMS"] = "spoiled"
    os.environ["NEW"] = "new"
    del os.environ["OTHER"]

def seeds():
    import random, numpy
    random.seed(1)
    numpy.random.seed(1)

def randoms():
    import random, numpy
    return [random.random(), random.gauss(0, 1), float(numpy.random.rand()), float(numpy.random.randn())]
"""


class Reused(Warm):
    """Launches are for reused workers, of key 1 unless `reuse` says another."""

    def submit(self, target: str, params: dict[str, Any] | None = None, **given: object) -> int:
        return super().submit(target, params, **{"reuse": 1, **given})

    def call(self, target: str, params: dict[str, Any] | None = None, **given: object) -> Any:
        return self.result(self.submit(target, params, **given))


@pytest.fixture
def jobs(start: Callable[..., Run], tmp_path: Path) -> Iterator[Reused]:
    """One lane, one attempt at a time."""
    (tmp_path / "jobs.py").write_text(JOBS)
    made = Reused(start(lanes=1, workers=1), tmp_path, ("numpy",), None)
    made.zygote.start()
    yield made
    made.zygote.stop()


def test_calls_share_a_process_and_what_they_leave_in_it(jobs: Reused) -> None:
    calls = [jobs.call("jobs:counts", {"step": step}) for step in (1, 2, 3)]
    (pid,) = {pid for pid, _ in calls}
    assert [count for _, count in calls] == [1, 3, 6]
    assert alive(pid)


def test_each_call_has_records_of_its_own(jobs: Reused) -> None:
    handles = [jobs.submit("jobs:says", {"text": text}) for text in ("one", "two")]
    pids = {jobs.result(handle) for handle in handles}
    events = [jobs.run.end(handle) for handle in handles]
    assert {event.pid for event in events} == pids
    assert len(pids) == 1
    outputs = [(jobs.run.output(handle), jobs.errors(handle)) for handle in handles]
    assert outputs == [("one\n", "ONE\n"), ("two\n", "TWO\n")]
    assert all(event.kind == EXITED and event.status == 0 and event.run_ns > 0 for event in events)
    assert events[0].started_ns <= events[0].ended_ns <= events[1].started_ns


def test_a_call_that_prints_nothing_leaves_no_log(jobs: Reused, tmp_path: Path) -> None:
    calls = [("jobs:pid", None), ("jobs:says", {"text": "a"}), ("jobs:pid", None), ("jobs:pid", None)]
    calls += [("jobs:writes_below_python", {"text": "b"}), ("jobs:fails", None), ("jobs:pid", None)]
    handles = [jobs.submit(target, params) for target, params in calls]
    events = jobs.run.ends(handles)
    assert len({event.pid for event in events}) == 1
    assert [event.left_output for event in events] == [False, True, False, False, True, True, False]
    kept = {path.name for path in tmp_path.glob("*.out")} - {f"{handles[-1]}.out"}  # that is the next call's
    assert kept == {f"{handle}.out" for handle, event in zip(handles, events, strict=True) if event.left_output}
    assert [jobs.run.output(handles[place]) for place in (1, 4)] == ["a\n", "b"]
    assert "LookupError" in jobs.errors(handles[5])
    jobs.call("jobs:pid", reuse=2)  # it takes the place
    wait_until(lambda: not (tmp_path / f"{handles[-1]}.out").exists(), "the worker's end, with which its logs go")
    assert not (tmp_path / f"{handles[-1]}.err").exists()


def test_what_a_call_has_started_writes_to_no_other_calls_log(jobs: Reused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    first = jobs.submit("jobs:starts_a_daemon")
    pid = jobs.result(first)
    second = jobs.submit("jobs:pid")
    assert jobs.result(second) == pid
    (tmp_path / "gate").write_text("\n")
    wait_until(lambda: not alive(int((tmp_path / "daemon").read_text())), "the daemon's end")
    assert jobs.run.end(first).left_output
    assert jobs.run.output(first) == "late\n"
    assert jobs.run.output(second) == ""


@pytest.mark.parametrize("text", ["to elsewhere", ""])
def test_output_that_a_call_sends_elsewhere_is_not_the_next_ones(jobs: Reused, tmp_path: Path, text: str) -> None:
    pid = jobs.call("jobs:redirects_its_output", {"text": text})
    said = jobs.submit("jobs:says", {"text": "mine"})
    assert jobs.result(said) == pid
    assert jobs.run.output(said) == "mine\n"
    assert (tmp_path / "elsewhere").read_text() == text


def test_results_come_with_the_end_of_a_call_or_in_a_file(jobs: Reused, tmp_path: Path) -> None:
    long = _sibling.RESULT_BYTES - 1  # with its quotes it is longer
    calls: list[tuple[str, dict[str, Any] | None, bool, Any]] = [
        ("jobs:returns", {"size": long - 1}, False, "x" * (long - 1)),
        ("jobs:returns", {"size": long}, True, "x" * long),
        ("jobs:leaves", {"text": '"by hand"'}, True, "by hand"),
        ("jobs:leaves_and_returns", None, False, "returned"),
    ]
    for target, params, in_file, result in calls:
        handle = jobs.submit(target, params, extra=[b"PYSCHED_PROGRESS=" + os.fsencode(tmp_path / "progress")])
        assert jobs.result(handle) == result
        event = jobs.run.end(handle)
        assert (event.left_result, (tmp_path / f"{handle}.result").exists()) == (in_file, in_file)
        assert event.left_output == in_file  # by the path of the log the file is found
        assert not (tmp_path / "progress").exists()
    silent = jobs.run.end(jobs.submit("builtins:print"))
    assert (silent.left_result, silent.result) == (False, None)


def test_a_start_is_told_while_the_call_runs_and_timeouts_count_from_it(jobs: Reused, tmp_path: Path) -> None:
    before = jobs.call("jobs:pid")
    waiting = jobs.submit("jobs:waits", grace_s=0.0)
    assert jobs.run.started(waiting).pid == before
    assert jobs.run.core.kill(waiting, 0.0, CAUSE_CANCEL)
    jobs.run.end(waiting)
    before = jobs.call("jobs:pid")
    late = jobs.run.end(jobs.submit("jobs:burns", {"seconds": 60}, timeout_s=0.001, grace_s=0.0))
    assert (late.cause, late.pid) == (CAUSE_TIMEOUT, before)
    assert late.run_ns >= 1_000_000


def test_variables_are_what_each_call_is_told(jobs: Reused) -> None:
    extra = [b"MINE=mine", b"OTHER=other"]
    jobs.call("jobs:pid", extra=extra)
    for wanted in ("1", "a longer one than the ones before it were" * 4, ""):
        assert jobs.call("jobs:variables", {"name": "MINE"}, extra=[b"MINE=" + wanted.encode()]) == [wanted, wanted]
    jobs.end(jobs.submit("jobs:spoils_variables", extra=extra))
    for name, wanted in (("MINE", "mine"), ("OTHER", "other")):
        assert jobs.call("jobs:variables", {"name": name}, extra=extra) == [wanted, wanted]
    assert jobs.call("jobs:variables", {"name": "NEW"}, extra=extra) == [None, ""]


def test_random_numbers_differ_from_call_to_call(jobs: Reused) -> None:
    targets = ["jobs:randoms", "jobs:seeds", "jobs:randoms", "jobs:pid", "jobs:seeds", "jobs:randoms"]
    handles = [jobs.submit(target) for target in targets]
    calls = [json.loads(event.result) for event in jobs.run.ends(handles) if event.result]
    drawn = [number for call in calls if isinstance(call, list) for number in call]
    assert len({*drawn}) == 12


def test_processor_time_is_each_calls_own(jobs: Reused) -> None:
    handles = [jobs.submit("jobs:burns", {"seconds": seconds}) for seconds in (0.3, 0.0)]
    assert len({jobs.result(handle) for handle in handles}) == 1
    busy, idle = (jobs.run.end(handle).cpu_ns for handle in handles)
    assert busy >= 300_000_000
    assert idle < 300_000_000
    leaving = jobs.submit("jobs:leaves_a_thread")  # ends with the worker, whose usage is that of all three
    jobs.result(leaving)
    assert 0 <= jobs.run.end(leaving).cpu_ns < 300_000_000


def test_each_call_begins_as_the_first_did(jobs: Reused) -> None:
    first = jobs.call("jobs:about")
    assert first["descriptors"] == ["0", "1", "2", "3"]
    assert jobs.call("jobs:spoils") == first["pid"]
    second = jobs.call("jobs:about")
    for told in (first, second):  # what is each attempt's own
        told.pop("limit")
        told["environment"].pop("PYSCHED_RESULT")
    assert second == first
    handle = jobs.submit("jobs:says", {"text": "heard"})
    assert jobs.result(handle) == first["pid"]
    assert jobs.run.output(handle) == "heard\n"


def test_a_mark_of_its_own_is_in_the_soft_limit(jobs: Reused) -> None:
    limits = [jobs.call("jobs:about", mark=mark)["limit"] for mark in (11, 12, 13)]
    assert [hard for _, hard in limits] == [2**62 | 11] * 3
    assert [soft for soft, _ in limits] == [2**62 | 11, 2**61 | 12, 2**61 | 13]


def test_another_key_is_another_process(jobs: Reused) -> None:
    pids = [jobs.call("jobs:pid", reuse=key) for key in (1, 2)]
    assert len(set(pids)) == 2
    assert jobs.call("jobs:pid", reuse=0) not in pids
    # One lane and one worker keep one idle process.
    wait_until(lambda: not alive(pids[0]), "the end of the one that was idle for longer")
    assert jobs.call("jobs:pid", reuse=2) == pids[1]


def test_an_exception_fails_its_call_and_not_the_worker(jobs: Reused) -> None:
    handle = jobs.submit("jobs:fails")
    assert jobs.end(handle) == 1
    assert "LookupError" in jobs.errors(handle)
    pid = int(jobs.error(handle)["message"])
    refused = jobs.submit("jobs:missing")
    assert jobs.end(refused) == 2
    assert jobs.end(jobs.submit("sys:exit")) == 0
    assert jobs.call("jobs:pid") == pid


@pytest.mark.parametrize(("target", "status"), [("os:abort", signal.SIGABRT), ("jobs:os.abort", signal.SIGABRT)])
def test_a_crash_is_the_end_of_one_call(jobs: Reused, target: str, status: int) -> None:
    before = jobs.call("jobs:pid")
    event = jobs.run.end(jobs.submit(target))
    assert (event.pid, event.status & 0x7F) == (before, status)
    assert jobs.call("jobs:pid") != before


def test_a_timeout_ends_the_worker_and_its_tree(jobs: Reused, tmp_path: Path) -> None:
    before = jobs.call("jobs:pid")
    event = jobs.run.end(jobs.submit("jobs:waits", timeout_s=1.0, grace_s=30.0))
    assert (event.cause, event.pid) == (CAUSE_TIMEOUT, before)
    assert not alive(before)
    if (tmp_path / "child").exists():
        assert not alive(int((tmp_path / "child").read_text().split()[1]))
    assert jobs.call("jobs:pid") != before


def test_a_cancel_ends_the_worker_and_its_tree(jobs: Reused, tmp_path: Path) -> None:
    before = jobs.call("jobs:pid")
    handle = jobs.submit("jobs:waits")
    wait_until((tmp_path / "child").exists, "the call's child")
    assert jobs.run.core.kill(handle, 0.0, CAUSE_CANCEL)
    event = jobs.run.end(handle)
    assert (event.cause, event.status, event.pid) == (CAUSE_CANCEL, signal.SIGKILL, before)
    assert not any(alive(int(pid)) for pid in (tmp_path / "child").read_text().split())
    assert jobs.call("jobs:pid") != before


def test_a_worker_that_dies_while_idle_is_replaced_unseen(jobs: Reused) -> None:
    before = jobs.call("jobs:pid")
    os.kill(before, signal.SIGKILL)
    assert jobs.call("jobs:pid") != before
    wait_until(lambda: not alive(before), "it to be collected")


def test_a_worker_that_dies_before_it_begins_costs_no_call(jobs: Reused) -> None:
    before = jobs.call("jobs:pid")
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: process_state(before) == "T", "the stop")
    handle = jobs.submit("jobs:pid")
    wait_until(lambda: jobs.run.core.running == 1, "the request")
    os.kill(before, signal.SIGKILL)
    assert jobs.result(handle) != before


def test_a_call_that_ends_within_its_grace_ends_its_worker(jobs: Reused, tmp_path: Path) -> None:
    before = jobs.call("jobs:pid")
    handle = jobs.submit("jobs:ends_in_its_own_time")
    wait_until((tmp_path / "deaf").exists, "the call")
    assert jobs.run.core.kill(handle, 600.0, CAUSE_CANCEL)
    wait_until((tmp_path / "told").exists, "TERM")
    (tmp_path / "go").touch()
    assert jobs.result(handle) == before
    assert jobs.run.end(handle).cause == CAUSE_CANCEL
    assert jobs.call("jobs:pid") != before


def test_the_row_of_a_call_is_that_of_a_process(start: Callable[..., Run], tmp_path: Path) -> None:
    """What a successor of this process, and its guard, would find: pid, mark and end of each call."""
    (tmp_path / "jobs.py").write_text(JOBS)
    path = tmp_path / "attempts.table"
    AttemptTable.begin(str(path), b"g" * 16)
    table = AttemptTable(str(path), b"g" * 16, rows=8)
    jobs = Reused(start(lanes=1, workers=1, table=table), tmp_path, ("numpy",), None, path)
    jobs.zygote.start()
    try:
        pid = jobs.call("jobs:pid", token=1, mark=11)
        assert jobs.call("jobs:pid", token=2, mark=12) == pid
        jobs.call("jobs:returns", {"size": 5_000}, token=5, mark=15)
        refused = jobs.submit("jobs:pid", token=3, cwd=b"/nowhere")
        assert jobs.run.end(refused).kind == SPAWN_FAILED
        jobs.end(jobs.submit("jobs:fails", token=4, timeout_s=600.0))
    finally:
        jobs.zygote.stop()
    rows = {row.token: row for row in table.rows()}
    assert {token: (row.state, row.pid, row.mark) for token, row in rows.items() if token != 4} == {
        1: (ROW_ENDED, pid, 11),
        2: (ROW_ENDED, pid, 11),  # the worker is known by its first call
        5: (ROW_ENDED, pid, 11),
    }
    ends = [rows[token].end(0) for token in (1, 2, 5, 4)]
    assert [end.left_output for end in ends] == [False, False, True, True]
    assert [(end.left_result, end.result) for end in ends[:3]] == [
        (False, str(pid).encode()), (False, str(pid).encode()), (True, None),
    ]  # fmt: skip
    assert json.loads(ends[3].result or b"")["error"]["type"] == "LookupError"
    again = AttemptTable(str(path), b"g" * 16, rows=8)
    assert again.row(2).end(0).result == str(pid).encode()
    assert AttemptTable(str(path), b"g" * 16).row(2).end(0).result is None  # nobody who has rows reads them so
    assert [rows[token].end(0).status for token in (1, 2, 4)] == [0, 0, 1 << 8]
    assert rows[1].started_ns < rows[2].started_ns


@pytest.mark.parametrize("then", [signal.SIGCONT, signal.SIGKILL])
def test_what_was_asked_of_a_stopped_worker_can_be_cancelled(jobs: Reused, then: signal.Signals) -> None:
    before = jobs.call("jobs:pid")
    os.kill(before, signal.SIGSTOP)
    wait_until(lambda: process_state(before) == "T", "the stop")
    handle = jobs.submit("jobs:waits")  # if the lane hears of the cancel late, it ends by that all the same
    wait_until(lambda: jobs.run.core.running == 1, "the request")
    assert jobs.run.core.kill(handle, 0.0, CAUSE_CANCEL)
    os.kill(before, then)
    assert jobs.run.end(handle).cause == CAUSE_CANCEL
    assert jobs.call("jobs:pid") != before


@pytest.mark.parametrize("target", ["jobs:leaves_a_thread", "jobs:closes_its_output", "jobs:drops_its_socket"])
def test_a_call_that_leaves_things_ends_its_worker(jobs: Reused, target: str) -> None:
    before = jobs.call("jobs:pid")
    handle = jobs.submit(target)
    jobs.run.end(handle)
    wait_until(lambda: not alive(before), "the worker's end")
    assert jobs.call("jobs:pid") != before
    assert target != "jobs:leaves_a_thread" or jobs.run.output(handle) == "the thread\n"


def test_what_a_call_leaves_in_its_group_is_ended(jobs: Reused) -> None:
    pid, child = jobs.call("jobs:leaves_a_child")
    wait_until(lambda: not alive(child), "the child's end")
    assert jobs.call("jobs:pid") != pid


def test_a_worker_that_has_grown_is_replaced(jobs: Reused) -> None:
    before = jobs.call("jobs:pid")
    assert jobs.call("jobs:grows", {"size": reuse.GROWTH_BYTES // 8}) == before
    assert jobs.call("jobs:grows", {"size": reuse.GROWTH_BYTES + 2**20}) == before
    assert jobs.call("jobs:pid") != before


def test_files_that_cannot_be_made_fail_the_attempt_and_not_the_worker(jobs: Reused) -> None:
    before = jobs.call("jobs:pid")
    event = jobs.run.end(jobs.submit("jobs:pid", cwd=b"/nowhere"))
    assert (event.kind, event.step, event.errno) == (SPAWN_FAILED, "cwd", 2)
    assert jobs.call("jobs:pid") == before


def test_a_module_that_changes_on_disk_is_imported_again(jobs: Reused, tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text("import os\ndef f():\n    return [os.getpid(), 'old']\n")
    pid, said = jobs.call("mine:f")
    assert said == "old"
    module.write_text("import os\ndef f():\n    return [os.getpid(), 'newer']\n")
    wait_until(lambda: jobs.call("mine:f")[1] == "newer", "the new version")
    wait_until(lambda: not alive(pid), "the end of the worker that had the old one")
    other, count = jobs.call("jobs:counts")
    assert (other != pid, count) == (True, 1)
    assert jobs.call("jobs:counts") == [other, 2]


def test_a_preload_that_fails_does_not_stay_in_a_worker(start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    jobs = Reused(start(lanes=1, workers=1), tmp_path, ("mine",), tmp_path / "early")
    jobs.zygote.start()
    try:
        handle = jobs.submit("jobs:pid")
        assert jobs.end(handle) == 2
        assert "preload: 'mine' cannot be imported" in jobs.error(handle)["message"]
        (tmp_path / "early").mkdir()
        (tmp_path / "early" / "mine.py").write_text("")
        wait_until(lambda: jobs.end(jobs.submit("jobs:pid")) == 0, "the next try")
    finally:
        jobs.zygote.stop()


def test_exit_handlers_run_when_the_worker_ends(jobs: Reused, tmp_path: Path) -> None:
    jobs.call("jobs:at_exit", {"name": str(tmp_path / "done")})
    assert not (tmp_path / "done").exists()
    jobs.call("jobs:pid", reuse=2)  # it takes the place
    wait_until((tmp_path / "done").exists, "the handler")


def test_idle_workers_end_with_the_core(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    jobs = Reused(Run(tmp_path, lanes=1, workers=1), tmp_path, ("numpy",), None)
    jobs.zygote.start()
    try:
        pid = jobs.call("jobs:pid")
    finally:
        jobs.run.core.close()
        jobs.zygote.stop()
    assert not alive(pid)
    with pytest.raises(ChildProcessError):  # nor is it left as a zombie
        os.waitpid(pid, os.WNOHANG)


def test_many_calls_by_many_workers(start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    jobs = Reused(start(lanes=2, workers=4), tmp_path, ("numpy",), None)
    jobs.zygote.start()
    try:
        handles = [jobs.submit("jobs:process", reuse=1 + number % 3) for number in range(300)]
        processes = [tuple(jobs.result(handle)) for handle in handles]
    finally:
        jobs.zygote.stop()
    by_key = [set(processes[key::3]) for key in range(3)]
    assert not by_key[0] & by_key[1] | by_key[1] & by_key[2] | by_key[0] & by_key[2]
    assert len(set(processes)) < 300
