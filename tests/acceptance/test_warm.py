"""ML jobs, which are forked from a process that has their modules loaded: what one does harms no other."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

from .conftest import Process, Site, wait_until
from .test_guard import kill_node
from .test_limits import running

# A tenth as many misbehave.  2,000 take a minute on an idle machine.
GOOD = int(os.environ.get("PYSCHED_TEST_GOOD_JOBS", "200"))

JOBS = """
import ctypes, os, shutil, signal, subprocess, sys, time

CONSTANT = 3

def good(number):
    import numpy
    return {"sum": int(numpy.arange(number + 1).sum())}

def raises():
    raise LookupError("no such thing")

def returns_a_set():
    return {1, 2}

def floods():
    for _ in range(1024):
        os.write(1, b"x" * 2**20)
        time.sleep(0.001)

def forks():
    if os.fork() == 0:
        time.sleep(1000)
    return "forked"

def deaf():
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    while True:
        pass

def loops():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    while True:
        pass

def exits_with_text():
    sys.exit("enough")

class Noisy:
    def __del__(self):
        raise ValueError("in __del__")

def raises_in_del():
    Noisy()
    return "fine"

def deletes_its_folder():
    os.mkdir(str(os.getpid()))
    os.chdir(str(os.getpid()))
    shutil.rmtree(os.getcwd())
    return "fine"

def segfaults():
    ctypes.string_at(0)

def leaves_at_once():
    os._exit(3)

def kills_its_group():
    os.killpg(0, signal.SIGKILL)

def closes_everything():
    os.closerange(0, 1024)
    return "fine"

def recurses():
    return recurses()

def breaks_the_interpreter():
    import builtins, json
    builtins.print = builtins.len = builtins.isinstance = json.dumps = os.replace = None
    sys.stdout = sys.stderr = None
    return "?"
"""

FAILS = {"status": "failed"}
FINE = {"status": "succeeded", "reason": None}
# What is dropped, and what must stand in the record.
MISBEHAVING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"entrypoint": "jobs:absent"}, {**FAILS, "reason": "exit 2"}),
    ({"entrypoint": "absent:f"}, {**FAILS, "reason": "exit 2"}),
    ({"entrypoint": "jobs:CONSTANT"}, {**FAILS, "reason": "exit 2"}),
    ({"entrypoint": "jobs:good", "params": {"other": 1}}, {**FAILS, "reason": "exit 2"}),
    ({"entrypoint": "jobs:raises"}, {**FAILS, "reason": "exit 1"}),
    ({"entrypoint": "jobs:returns_a_set"}, {**FAILS, "reason": "exit 1"}),
    ({"entrypoint": "jobs:floods"}, {**FAILS, "reason": "log_limit"}),
    ({"entrypoint": "jobs:forks"}, {**FINE, "result": "forked"}),
    ({"entrypoint": "jobs:deaf", "timeout_s": 0.5, "grace_s": 0.2}, {**FAILS, "reason": "timeout"}),
    ({"entrypoint": "jobs:loops", "timeout_s": 0.5, "grace_s": 0.2}, {**FAILS, "reason": "timeout"}),
    ({"entrypoint": "jobs:exits_with_text"}, {**FAILS, "reason": "exit 1", "result": None}),
    ({"entrypoint": "jobs:raises_in_del"}, {**FINE, "result": "fine"}),
    ({"entrypoint": "jobs:deletes_its_folder"}, {**FINE, "result": "fine"}),
    ({"entrypoint": "jobs:segfaults"}, {**FAILS, "reason": "signal SIGSEGV"}),
    ({"entrypoint": "jobs:leaves_at_once"}, {**FAILS, "reason": "exit 3"}),
    ({"entrypoint": "jobs:kills_its_group"}, {**FAILS, "reason": "signal SIGKILL"}),
    ({"entrypoint": "jobs:closes_everything"}, {"result": "fine"}),
    ({"entrypoint": "jobs:recurses"}, {**FAILS, "reason": "exit 1"}),
    ({"entrypoint": "jobs:breaks_the_interpreter"}, FAILS),
]


def warm(site: Site, **task: Any) -> dict[str, Any]:
    return {"type": "ml", "cwd": str(site.root), "max_retries": 0, **task}


def test_jobs_that_misbehave_harm_no_good_one(site: Site) -> None:
    (site.root / "jobs.py").write_text(JOBS)
    wanted: dict[str, dict[str, Any]] = {}
    for number in range(GOOD):
        wanted[f"good-{number}"] = {**FINE, "attempts": 1, "result": {"sum": number * (number + 1) // 2}}
        site.drop(f"good-{number}", warm(site, entrypoint="jobs:good", params={"number": number}))
        if number % 10 == 0:
            task, end = MISBEHAVING[number // 10 % len(MISBEHAVING)]
            wanted[f"bad-{number}"] = end
            site.drop(f"bad-{number}", warm(site, **task))
    node = site.node("--log-limit", "1MiB", "--on-log-limit", "fail", "--cpus", "8", workers=8)
    records = site.all_done(len(wanted))
    found = {name: {field: records[name][field] for field in end} for name, end in wanted.items()}
    assert found == wanted
    errors = [record["result"]["error"] for record in records.values() if "error" in (record["result"] or "")]
    assert {error["type"] for error in errors} >= {"EntrypointError", "LookupError", "ResultError", "RecursionError"}
    assert len(zygotes(node)) == 1


def test_a_job_outlives_a_killed_node_and_the_zygote_does_not(site: Site) -> None:
    (site.root / "jobs.py").write_text("def waits():\n    open('began', 'w')\n    return open('gate').read()\n")
    os.mkfifo(site.root / "gate")
    guard = site.node()
    site.drop("job", warm(site, entrypoint="jobs:waits"))
    wait_until((site.root / "began").exists, "the job to run")
    (pid,) = zygotes(guard)
    kill_node(guard)
    wait_until(lambda: pid not in running("/zygote.py"), "the zygote's end")
    assert "adopted" in guard.messages
    (site.root / "gate").write_text("go")
    record = site.done("job")
    assert (record["status"], record["attempts"], record["result"]) == ("succeeded", 1, "go")


def test_a_node_that_is_killed_while_jobs_are_forked_loses_none_and_runs_none_twice(site: Site) -> None:
    lines = "def append(name):\n    with open(name, 'a') as file:\n        file.write('x')\n"
    (site.root / "jobs.py").write_text(lines)
    guard = site.node("--cpus", "8", workers=8)
    for number in range(60):
        site.drop(f"job-{number}", warm(site, entrypoint="jobs:append", params={"name": f"ran.{number}"}))
    for count in (1, 20):
        wait_until(lambda: len(site.done_ids()) >= count, "some records")  # noqa: B023
        kill_node(guard)
    records = site.all_done(60)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert {(site.root / f"ran.{number}").read_text() for number in range(60)} == {"x"}


def test_a_zygote_that_is_killed_costs_no_job(site: Site) -> None:
    node = site.node("--cpus", "8", workers=8)
    for number in range(40):
        site.drop(f"task-{number}", warm(site, duration_ms=1, params={"seed": number}))
    for count in (1, 2):
        wait_until(lambda: len(site.done_ids()) >= 10 * count and len(zygotes(node)) == count, "some records")  # noqa: B023
        os.kill(zygotes(node)[-1], signal.SIGKILL)
    records = site.all_done(40)
    assert {(record["status"], record["attempts"]) for record in records.values()} == {("succeeded", 1)}


def test_calls_share_a_process_where_a_task_says_so(site: Site) -> None:
    (site.root / "jobs.py").write_text("import os\ndef pid():\n    return os.getpid()\n")
    site.node(workers=1)
    for number in range(4):
        site.drop(f"reused-{number}", warm(site, entrypoint="jobs:pid", reuse=True))
        site.drop(f"own-{number}", warm(site, entrypoint="jobs:pid"))
    records = site.all_done(8)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert len({records[f"reused-{number}"]["result"] for number in range(4)}) == 1
    assert len({record["result"] for record in records.values()}) == 5


def test_calls_of_some_priorities_share_a_process_unless_a_task_says(site: Site) -> None:
    (site.root / "jobs.py").write_text("import os\ndef pid():\n    return os.getpid()\n")
    site.home.mkdir()
    (site.home / "pysched.toml").write_text('reuse = ["low", "HIGH"]\n')
    site.node("--reuse", "LOW,Med", workers=1)  # wins
    for number in range(3):
        for priority in ("LOW", "MED", "HIGH"):
            site.drop(f"{priority}-{number}", warm(site, entrypoint="jobs:pid", priority=priority))
        site.drop(f"own-{number}", warm(site, entrypoint="jobs:pid", priority="LOW", reuse=False))
        site.drop(f"simulated-{number}", warm(site, duration_ms=1, priority="LOW"))
        site.drop(f"said-{number}", warm(site, entrypoint="jobs:pid", priority="HIGH", reuse=True))
    records = site.all_done(18)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    pids = {
        kind: {records[f"{kind}-{number}"]["result"] for number in range(3)}
        for kind in ("LOW", "MED", "HIGH", "own", "said")
    }
    assert len(pids["LOW"] | pids["MED"] | pids["said"]) == 1
    assert len(pids["HIGH"] | pids["own"]) == 6


def test_a_wrong_priority_to_reuse_is_an_error_that_says_so(site: Site) -> None:
    process = site.start("run", "--reuse", "LOW,MIDDLE")
    assert process.popen.wait(60) == 2
    assert "reuse: 'MIDDLE' is no priority; use HIGH, MED or LOW, as LOW,MED\n" in process.messages


def test_a_call_in_a_reused_worker_outlives_a_killed_node(site: Site) -> None:
    (site.root / "jobs.py").write_text(
        "import os\ndef pid():\n    return os.getpid()\n"
        "def waits():\n    open('began', 'w')\n    return [os.getpid(), open('gate').read()]\n"
    )
    os.mkfifo(site.root / "gate")
    guard = site.node(workers=1)
    site.drop("first", warm(site, entrypoint="jobs:pid", reuse=True))
    pid = site.done("first")["result"]
    site.drop("job", warm(site, entrypoint="jobs:waits", reuse=True))
    wait_until((site.root / "began").exists, "the call to run")
    kill_node(guard)
    wait_until(lambda: "adopted" in guard.messages, "the next incarnation")
    (site.root / "gate").write_text("go")
    record = site.done("job")
    assert (record["status"], record["attempts"], record["result"]) == ("succeeded", 1, [pid, "go"])
    site.drop("last", warm(site, entrypoint="jobs:pid", reuse=True))
    assert site.done("last")["result"] != pid


def test_a_node_that_is_killed_loses_no_call_of_a_reused_worker_and_makes_none_twice(site: Site) -> None:
    lines = (
        "def append(name, number):\n    with open(name, 'a') as file:\n        file.write('x')\n"
        "    if number % 3 == 0:\n        print(number)\n    return {'number': number, 'text': 'x' * number * 10}\n"
    )
    (site.root / "jobs.py").write_text(lines)
    guard = site.node(workers=4)
    for number in range(200):
        # A retry is for the call that was about to be sent, and never was: its attempt counts as killed.
        params = {"name": f"ran.{number}", "number": number}
        task = {"entrypoint": "jobs:append", "params": params, "reuse": True, "max_retries": 3}
        site.drop(f"job-{number}", warm(site, **task))
    for count in (1, 100):
        wait_until(lambda: len(site.done_ids()) >= count, "some records")  # noqa: B023
        kill_node(guard)
    records = site.all_done(200)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert {(site.root / f"ran.{number}").read_text() for number in range(200)} == {"x"}
    for number in range(200):
        record = records[f"job-{number}"]
        assert record["result"] == {"number": number, "text": "x" * number * 10}  # with the call's end, or in a file
        if record["stdout"] is not None:
            assert Path(record["stdout"]).read_text() == (f"{number}\n" if number % 3 == 0 else "")
        else:
            assert number % 3 != 0
    wait_until(lambda: not [*site.home.rglob("*.result")], "the end of what results were left in")


def test_what_an_entrypoint_raises_is_in_the_record(site: Site) -> None:
    (site.root / "jobs.py").write_text(JOBS)
    site.node()
    site.drop("raises", warm(site, entrypoint="jobs:raises"))
    record = site.done("raises")
    assert (record["status"], record["reason"], record["exit_code"]) == ("failed", "exit 1", 1)
    error = record["result"]["error"]
    assert (error["type"], error["message"]) == ("LookupError", "no such thing")
    assert error["traceback"] == Path(record["stderr"]).read_text()


def test_what_a_warm_process_cannot_give_starts_cold(site: Site) -> None:
    """Variables that are read when an interpreter starts."""
    (site.root / "jobs.py").write_text("import sys\n\ndef f():\n    return sys.flags.hash_randomization\n")
    site.node()
    site.drop("cold", warm(site, entrypoint="jobs:f", env={"PYTHONHASHSEED": "0"}))
    site.drop("warm", warm(site, entrypoint="jobs:f", env={"MINE": "0"}))
    assert site.done("cold")["result"] == 0
    assert site.done("warm")["result"] == 1


def test_preload_is_a_setting(site: Site) -> None:
    site.home.mkdir()
    (site.home / "pysched.toml").write_text('preload = ["numpy", "decimal"]\n')
    (site.root / "jobs.py").write_text(
        "import sys\nloaded = [name in sys.modules for name in ('numpy', 'decimal', 'wave')]\n"
        "def f():\n    return loaded\n"
    )
    site.node()
    site.drop("f", warm(site, entrypoint="jobs:f"))
    assert site.done("f")["result"] == [True, True, False]


def zygotes(node: Process) -> list[int]:
    """All that the node has ever started, by what it says."""
    return [int(pid) for pid in re.findall(r"warm .*?pid=(\d+)", node.messages)]
