"""How soon does a job that crosses its memory limit end, and what do its neighbours notice?

    python -m benchmarks.memory_kill [--rounds 5] [--limit-mib 64]

Four ways to cross it, one job after the other, each beside three neighbours that are watched, too:

    by a leap     it touches 1 GiB as fast as the machine gives it
    by a step     it stays below the limit for a while, then a little above it
    by many       four processes of it stay below each, and are above it together
    warm          as a leap, forked from the zygote

A job writes down the moment at which it is over its limit.  `ended` is from there to the end of the attempt, `recorded`
to its `.done` file, which is written after the commit.  Neighbours sleep a millisecond at a time and report the longest
sleep; `alone` is the same without anybody who crosses anything.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.server import Server, running

NEIGHBOURS = 3
AGREED_S = 1.0
_MOST_S = 60.0
_JOBS = """
import mmap, os, sys, time

MIB = 1 << 20

def crossed():
    with open("crossed.part", "w") as file:
        file.write(repr(time.time()))
    os.replace("crossed.part", "crossed")

def touch(block, begin, end):
    for page in range(begin, end, 4096):
        block[page] = 1

def leap(limit_mib, size_mib=1024):
    block = mmap.mmap(-1, size_mib * MIB)
    touch(block, 0, limit_mib * MIB)
    crossed()
    touch(block, limit_mib * MIB, size_mib * MIB)
    time.sleep(600)

def step(limit_mib):
    block = mmap.mmap(-1, limit_mib * MIB)
    touch(block, 0, limit_mib // 2 * MIB)
    time.sleep(1)
    touch(block, limit_mib // 2 * MIB, limit_mib * MIB)
    crossed()
    time.sleep(600)

def many(limit_mib):
    for number in range(3):
        if os.fork() == 0:
            block = mmap.mmap(-1, limit_mib // 6 * MIB, flags=mmap.MAP_PRIVATE)
            touch(block, 0, limit_mib // 6 * MIB)
            time.sleep(600)
    time.sleep(0.5)
    block = mmap.mmap(-1, limit_mib // 2 * MIB, flags=mmap.MAP_PRIVATE)
    crossed()  # in a moment
    touch(block, 0, limit_mib // 2 * MIB)
    time.sleep(600)

def neighbour(until):
    longest = 0.0
    open(f"began.{os.getpid()}", "w").close()
    while not os.path.exists(until):
        begun = time.perf_counter()
        time.sleep(0.001)
        longest = max(longest, time.perf_counter() - begun)
    return longest * 1000

if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]))
"""
_WAYS = {"by a leap": "leap", "by a step": "step", "by many": "many", "warm": "leap"}
_numbers = count()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-mib", type=int, default=64)
    options = parser.parse_args()
    ended: dict[str, list[float]] = {way: [] for way in _WAYS}
    recorded: dict[str, list[float]] = {way: [] for way in _WAYS}
    sleeps: dict[str, list[float]] = {"alone": [], **{way: [] for way in _WAYS}}
    with running("up", "--port", "0", "--workers", "8", "--cpus", "8") as server:
        for _ in range(options.rounds):
            sleeps["alone"] += beside(server, None, options.limit_mib)[1]
            for way in _WAYS:
                times, longest = beside(server, way, options.limit_mib)
                ended[way].append(times[0])
                recorded[way].append(times[1])
                sleeps[way] += longest
    for way in _WAYS:
        print(f"{way:<10} ended {_spread(ended[way])} after it crossed, recorded {_spread(recorded[way])}", end=": ")
        print("as agreed" if max(recorded[way]) <= AGREED_S else f"NOT within {AGREED_S:g} s")
    for way, longest in sleeps.items():
        print(f"neighbours {way:<10} longest sleep of 1 ms: {_spread([each / 1000 for each in longest])}")
    return 0


def beside(server: Server, way: str | None, limit_mib: int) -> tuple[tuple[float, float], list[float]]:
    """Seconds from crossing to end and to `.done`, and the neighbours' longest sleeps, ms; no way: nobody crosses."""
    assert server.client is not None
    name = f"round{next(_numbers)}"
    with tempfile.TemporaryDirectory(prefix="pysched-bench-") as folder:
        Path(folder).chmod(0o755)
        Path(folder, "jobs.py").write_text(_JOBS)
        common = {"cwd": folder, "mem": f"{limit_mib}MiB", "max_retries": 0}
        neighbours: list[dict[str, Any]] = [
            {"id": f"{name}-{n}", "type": "ml", "entrypoint": "jobs:neighbour", "params": {"until": "over"}, **common}
            for n in range(NEIGHBOURS)
        ]
        server.client.submit_many(neighbours)
        _await(lambda: len(list(Path(folder).glob("began.*"))) == NEIGHBOURS, "the neighbours to run")
        times = (0.0, 0.0)
        if way is not None:
            function = _WAYS[way]
            task: dict[str, Any] = {"id": f"{name}-hungry", **common}
            if way == "warm":
                task |= {"type": "ml", "entrypoint": f"jobs:{function}", "params": {"limit_mib": limit_mib}}
            else:
                task |= {"command": [sys.executable, "jobs.py", function, str(limit_mib)]}
            server.client.submit_many([task])
            record, done_s = _done(server, f"{name}-hungry")
            assert record["reason"] == "memory", record
            crossed_s = float(Path(folder, "crossed").read_text())
            ended_s = datetime.fromisoformat(record["finished_at"].replace("Z", "+00:00")).timestamp()
            times = (max(0.0, ended_s - crossed_s), done_s - crossed_s)
        else:
            time.sleep(1.5)  # as long as the others' rounds take
        Path(folder, "over").touch()
        records = [_done(server, task["id"])[0] for task in neighbours]
        assert all(record["status"] == "succeeded" for record in records), records
        return times, [float(record["result"]) for record in records]


def _done(server: Server, task_id: str) -> tuple[dict[str, Any], float]:
    """The record of a task, and when its file was written."""
    path = server.home / "completed" / f"{task_id}.done"
    _await(path.exists, f"the end of {task_id}")
    record: dict[str, Any] = json.loads(path.read_bytes())
    return record, path.stat().st_mtime


def _await(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _MOST_S
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.002)


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f} ms ({min(seconds) * 1000:.0f} … {max(seconds) * 1000:.0f})"


if __name__ == "__main__":
    sys.exit(main())
