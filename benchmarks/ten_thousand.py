"""Ten thousand at once: `sleep 20` on one node, submitted over HTTP, all running together, none lost.

    python -m benchmarks.ten_thousand [--count 10000] [--sleep-s 20]

Prints the peak of processes, what the node holds for each attempt (descriptors, growth of its resident memory), and how
it answers meanwhile: single submissions, and the largest gap between two renewals of the lease.  Exit 0 only if all
ran at once, all succeeded once, and descriptors stay in their bound.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import sys
import time
from datetime import datetime
from pathlib import Path

import psutil

from benchmarks.server import Server, running
from pysched.client import Client

DESCRIPTORS = 1.5  # for each attempt, at most
BATCH = 5_000
ENDED = ("succeeded", "failed", "cancelled")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--sleep-s", type=int, default=20)
    options = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most_files < options.count * DESCRIPTORS:
        print(f"needs a hard limit of {int(options.count * DESCRIPTORS)} open files, has {most_files}")
        return 2
    with running("up", "--port", "0", "--workers", str(options.count)) as server:
        return 0 if measure(server, options.count, options.sleep_s) else 1


def measure(server: Server, count: int, sleep_s: int) -> bool:
    assert server.client is not None
    node = psutil.Process(server.node_pid)
    files, rss = node.num_fds(), node.memory_info().rss
    start = time.monotonic()
    for first in range(0, count, BATCH):
        server.client.submit_many(
            {"id": f"sleep-{number}", "command": ["/bin/sleep", str(sleep_s)], "max_retries": 0}
            for number in range(first, min(first + BATCH, count))
        )
    print(f"accepted   {count} in {time.monotonic() - start:.1f} s")
    peak_files, peak_rss = files, rss
    submits_ms: list[float] = []
    renewals: set[str] = set()
    probes, ended = 0, 0
    while ended < count + probes and time.monotonic() < start + 120 + 10 * sleep_s:
        open_files = node.num_fds()
        if open_files > peak_files:
            peak_files, peak_rss = open_files, node.memory_info().rss
        if open_files - files > count // 2:  # at least one for each that runs
            submits_ms.append(_probe(server.client))
            probes += 1
        renewals.update(entry["renewed_at"] for entry in server.client.nodes())
        states = server.client.stats()["states"]
        ended = sum(states.get(state, 0) for state in ENDED)
        time.sleep(0.1)
    print(f"ended      after {time.monotonic() - start:.1f} s: {states}")
    peak = _most_at_once(server.client)
    descriptors = (peak_files - files) / max(peak, 1)
    print(f"at once    {peak}")
    memory_kib = (peak_rss - rss) / max(peak, 1) / 1024
    print(f"each       {descriptors:.2f} descriptors, {memory_kib:.2f} KiB of the node's memory")
    if submits_ms:
        submits_ms.sort()
        p99 = submits_ms[int(len(submits_ms) * 0.99)]
        print(
            f"submit     p50 {submits_ms[len(submits_ms) // 2]:.1f} ms, p99 {p99:.1f} ms of {len(submits_ms)} meanwhile"
        )
    moments = sorted(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() for text in renewals)
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    print(f"heartbeat  largest gap {max(gaps, default=0.0):.1f} s of a lease of 10 s")
    done = _await_done(server.home / "completed", count + probes)
    lost = count + probes - states.get("succeeded", 0)
    print(f"lost       {lost}; {done} .done files")
    return lost == 0 and done == count + probes and peak >= count and descriptors <= DESCRIPTORS


def _probe(client: Client) -> float:
    begun = time.perf_counter()
    client.submit({"command": ["/bin/true"]})
    return (time.perf_counter() - begun) * 1e3


def _await_done(folder: Path, count: int) -> int:
    """How many `.done` files there are once `count` are there, or after a minute: they follow the commit."""
    deadline = time.monotonic() + 60
    while True:
        done = sum(name.endswith(".done") for name in os.listdir(folder))
        if done >= count or time.monotonic() > deadline:
            return done
        time.sleep(0.1)


def _most_at_once(client: Client) -> int:
    """The largest number of sleeping tasks that ran at one moment, by the records of all."""
    steps = []
    for task in client.tasks():
        if task["id"].startswith("sleep-") and task["started_at"] is not None:
            steps += [(task["started_at"], 1), (task["finished_at"], -1)]
    most = running_now = 0
    for _, step in sorted(steps):
        running_now += step
        most = max(most, running_now)
    return most


if __name__ == "__main__":
    sys.exit(main())
