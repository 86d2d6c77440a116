"""What does durability cost a short process?  /bin/true by a node, from accept to `.done`, against a loop in C.

    python -m benchmarks.durable.processes [--count 2000] [--rounds 5]

The node: tasks committed in batches of 1,000, 8 workers, logs captured, results committed, `.done` files fsynced.
The loop: posix_spawn with the same two log files, no database, nothing synced; the better of one thread and two counts.
Both write to the same file system (TMPDIR): creating a file on ext4 costs 10 to 700 µs by what was deleted near it
within five minutes, so choose one where nothing was.  The last line says where a node's processor time goes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks import race
from benchmarks.baseline import build
from benchmarks.durable.server import cpu_s
from benchmarks.race import Lap, Race
from benchmarks.server import Server, running
from pysched.store.embedded import EmbeddedServer
from pysched.store.store import Store
from pysched.task import Task

NODE = "pysched node"
WORKERS = 8
BATCH = 1_000
_SOURCE = uuid.uuid4()
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Node:
    """A node under measurement; each lap is `count` tasks."""

    def __init__(self, server: Server, url: str, store: Store, count: int) -> None:
        self._server = server
        self._url = url
        self._store = store
        self._count = count
        self._laps = 0
        self.spent: dict[str, float] = {}  # µs of processor time a task by what spent it, of the last lap

    def lap(self) -> Lap:
        tasks = [Task(id=f"true-{self._laps}-{number}", command=["/bin/true"]) for number in range(self._count)]
        self._laps += 1
        before, start = self._cpu(), time.perf_counter()
        for first in range(0, self._count, BATCH):
            self._store.accept(tasks[first : first + BATCH], source=_SOURCE, atomic=True)
        looked_s = time.perf_counter()
        while self._done() < self._laps * self._count:
            time.sleep(max(0.01, 10 * (time.perf_counter() - looked_s)))  # whoever lists it holds up who writes into it
            looked_s = time.perf_counter()
        seconds = time.perf_counter() - start
        after = self._cpu()
        spent = {name: after[name] - before.get(name, 0.0) for name in after}
        self.spent = {name: value / self._count * 1e6 for name, value in spent.items()}
        return Lap(seconds, sum(spent.values()))

    def _done(self) -> int:
        names = os.listdir(self._server.home / "completed")
        return sum(name.endswith(".done") and not name.startswith(".") for name in names)

    def _cpu(self) -> dict[str, float]:
        times = psutil.Process(self._server.node_pid).cpu_times()
        found = {"PostgreSQL": cpu_s(self._url), "children": times.children_user + times.children_system, "Python": 0.0}
        for stat in Path(f"/proc/{self._server.node_pid}/task").glob("*/stat"):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            kind = "lanes" if name.startswith("pysched-lane") else "Python"
            found[kind] = found.get(kind, 0.0) + (int(fields[11]) + int(fields[12])) * _TICK_S
        return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    race.FOLDERS = None  # where the node's home lies, too
    with tempfile.TemporaryDirectory() as folder, running("run", "--workers", str(WORKERS)) as server:
        baseline = build(Path(folder))
        with EmbeddedServer(server.home).running() as url, Store(url) as store:
            node = Node(server, url, store, options.count)
            node.lap()  # warm
            contenders: dict[str, Callable[[], Lap]] = {NODE: node.lap}
            for threads in (1, 2):
                contenders[f"C posix_spawn, {threads} thread"] = race.program(
                    baseline.spawn_loop, "spawn", threads, WORKERS, options.count, "{folder}", "/bin/true"
                )
            result = Race(contenders, rounds=options.rounds)
    print("synchronous_commit = on, fsync = on")
    print(result.table(NODE, options.count))
    print("a node's µs of processor time a task: " + ", ".join(f"{n} {v:.0f}" for n, v in sorted(node.spent.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
