"""Tasks that ask for processors, memory and GPUs, on nodes that have so much and no more."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import sys
import termios
from pathlib import Path
from typing import Any

from pysched.errors import NotFoundError
from pysched.store.store import Store

from .conftest import Site, wait_until

HOLD = "echo begun; read line < {}"


def gate(site: Site, name: str = "gate") -> Path:
    path = site.root / name
    os.mkfifo(path)
    return path


def begun(site: Site, task_id: str) -> bool:
    return any(path.read_text() for path in site.home.glob(f"logs/**/{task_id}.*out*"))


def let_go(path: Path, count: int) -> None:
    file = os.open(path, os.O_RDWR)
    try:
        os.write(file, b"\n" * count)
        wait_until(lambda: _unread(file) == 0, "the jobs to read")
    finally:
        os.close(file)


def _why(site: Site, task_id: str) -> object:
    with Store(site.database) as store, contextlib.suppress(NotFoundError):
        return store.explain(task_id)["why"]
    return None


def _unread(file: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(file, termios.FIONREAD, count)
    return count[0]


def test_no_more_runs_than_there_are_processors_and_a_large_one_has_its_turn(site: Site) -> None:
    node = site.node("--cpus", "2", "--gpus", "none", workers=8)
    holds = HOLD.format(gate(site))
    for name in ("a", "b"):
        site.drop(name, {"command": holds, "cpus": 1})
    wait_until(lambda: begun(site, "a") and begun(site, "b"), "both to run")
    for name in ("large", "c", "d"):
        site.drop(name, {"command": f"echo $OMP_NUM_THREADS; exec true {name}", "cpus": 2 if name == "large" else 1})
        if name == "large":  # a node that does not know yet whether it is alone leaves it to others for a while
            wait_until(lambda: _why(site, "large") == "claimed", "room to be kept for it")
    site.drop("none", {"command": "true"})
    assert site.done("none")["status"] == "succeeded"  # after them, and past them
    assert set(site.done_ids()) == {"none"}
    let_go(site.root / "gate", 2)
    records = site.all_done(6)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert records["large"]["started_at"] < min(records["c"]["started_at"], records["d"]["started_at"])
    assert Path(records["large"]["stdout"]).read_text() == "2\n"
    assert Path(records["c"]["stdout"]).read_text() == "1\n"
    assert node.terminate() == 0


def test_what_runs_is_still_held_after_the_node_was_killed(site: Site) -> None:
    node = site.node("--cpus", "1", "--gpus", "0,1", workers=8)
    site.drop("a", {"command": HOLD.format(gate(site)) + "; echo $CUDA_VISIBLE_DEVICES", "cpus": 1, "gpus": 1})
    wait_until(lambda: begun(site, "a"), "it to run")
    (child,) = node.children()
    os.kill(child, 9)
    wait_until(lambda: node.messages.count("adopted") >= 1, "the next node")
    site.drop("b", {"command": "true", "cpus": 1})
    site.drop("pair", {"command": "true", "gpus": 2})
    site.drop("one", {"command": "echo $CUDA_VISIBLE_DEVICES", "gpus": 0.5})
    one = site.done("one")
    assert set(site.done_ids()) == {"one"}
    let_go(site.root / "gate", 1)
    records = site.all_done(4)
    assert {record["status"] for record in records.values()} == {"succeeded"}
    assert records["a"]["attempts"] == 1
    devices = [Path(record["stdout"]).read_text().split()[-1] for record in (records["a"], one)]
    assert sorted(devices) == ["0", "1"]


JOBS = """\
import sys
from os import environ


def see():
    return [environ["CUDA_VISIBLE_DEVICES"], environ["OMP_NUM_THREADS"], "numpy" in sys.modules]
"""


def test_warm_jobs_get_their_devices_and_their_threads(site: Site) -> None:
    (site.root / "jobs.py").write_text(JOBS)
    site.node("--cpus", "4", "--gpus", "GPU-aa,GPU-bb", workers=4)
    task: dict[str, Any] = {"type": "ml", "entrypoint": "jobs:see", "cwd": str(site.root)}
    asked: dict[str, dict[str, Any]] = {"two": {"gpus": 2}, "part": {"gpus": 0.5}, "wide": {"cpus": 3, "gpus": 1}}
    for name, asks in asked.items():
        site.drop(name, {**task, **asks})
    results = {name: record["result"] for name, record in site.all_done(3).items()}
    assert results["two"] == ["GPU-aa,GPU-bb", "1", True]
    assert results["part"][0] in {"GPU-aa", "GPU-bb"}
    assert (results["wide"][0] in {"GPU-aa", "GPU-bb"}, *results["wide"][1:]) == (True, "3", True)


REUSED = """\
import os

born = os.environ.get("CUDA_VISIBLE_DEVICES")


def see():
    return [os.getpid(), born, os.environ.get("CUDA_VISIBLE_DEVICES")]
"""


def test_reused_workers_keep_to_the_devices_they_were_born_with(site: Site) -> None:
    (site.root / "jobs.py").write_text(REUSED)
    site.node("--cpus", "8", "--gpus", "GPU-aa,GPU-bb", "--reuse", "MED", workers=8)
    task: dict[str, Any] = {"type": "ml", "entrypoint": "jobs:see", "cwd": str(site.root)}
    for number in range(20):
        site.drop(f"one-{number}", {**task, "gpus": 1})
    records = site.all_done(20)
    said = {tuple(record["result"]) for record in records.values()}
    assert all(born == now for _, born, now in said)
    assert len(said) == len({pid for pid, _, _ in said}) <= 2
    pids = {pid for pid, _, _ in said}
    site.drop("two", {"command": "echo $CUDA_VISIBLE_DEVICES", "gpus": 2})
    assert site.done("two")["status"] == "succeeded"
    site.drop("own", {**task, "gpus": 1, "reuse": False})
    assert site.done("own")["result"][0] not in pids
    site.drop("next", {**task, "gpus": 1})
    assert site.done("next")["result"][0] not in pids  # they gave way to those who got their devices


TAKES = """\
import time


def takes(mib):
    block = bytearray(mib << 20)
    block[::4096] = b"x" * len(block[::4096])
    if mib > 100:
        time.sleep(600)
    return mib
"""


def test_a_job_that_uses_more_memory_fails_with_its_peak_and_alone(site: Site) -> None:
    (site.root / "jobs.py").write_text(TAKES)
    site.node("--cpus", "8", workers=8)
    warm: dict[str, Any] = {"type": "ml", "entrypoint": "jobs:takes", "cwd": str(site.root), "max_retries": 0}
    command = f"{sys.executable} -c 'import jobs; jobs.takes(300)'; echo unreached"
    for number in range(4):
        site.drop(f"good-{number}", {**warm, "params": {"mib": 20}, "mem": "100MiB"})
    site.drop("warm", {**warm, "params": {"mib": 300}, "mem": "100MiB"})
    site.drop("command", {"command": command, "cwd": str(site.root), "mem": "100MiB", "max_retries": 1})
    records = site.all_done(6)
    assert {records[f"good-{number}"]["result"] for number in range(4)} == {20}
    for name, attempts in (("warm", 1), ("command", 2)):
        assert (records[name]["status"], records[name]["reason"]) == ("failed", "memory")
        assert records[name]["attempts"] == attempts
    assert Path(records["command"]["stdout"]).read_text() == ""
    with Store(site.database) as store:
        peaks = [attempt["max_rss_kb"] for name in ("warm", "command") for attempt in store.get(name)["attempts"]]
    assert min(peaks) > 99 * 1024  # the kernel lets none have more
    assert site.leftovers() == []


def test_what_cannot_be_asked_for_is_rejected(site: Site) -> None:
    site.node()
    site.drop("bad", "command: true\nmem: 4G\n")
    assert site.reason("bad") == "line 2: mem: '4G' is no size; use bytes, or text as 512MiB or 4GB\n"
    site.drop("typo", json.dumps({"command": "true", "cpu": 1}))
    assert "did you mean cpus?" in site.reason("typo")
