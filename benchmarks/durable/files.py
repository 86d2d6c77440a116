"""How fast do `.task` files become tasks, and how soon is one noticed?

    python -m benchmarks.durable.files [--count 5000] [--rounds 5]

Rate: a node's intake (scan, read, parse, commit, remove; batches of 1,000) with a real store, against a loop in C that
scans, reads and removes the same files, followed by the same rows inserted by the same statements.
Pick-up: from the rename into the folder of an idle node, which is paused, to the file's removal after the commit.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from benchmarks.baseline import build
from benchmarks.durable import raw
from benchmarks.durable.server import Server, running
from benchmarks.race import Lap, Race
from benchmarks.server import running as node_running
from pysched.intake.intake import Intake
from pysched.store.embedded import EmbeddedServer
from pysched.store.store import Store

INTAKE, LOOP = "pysched intake", "C loop, then inserts"
PICKUPS = 200
_CONTENT = b"priority: MED\ntype: system\nduration_ms: 5\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5_000, help="a multiple of 1,000")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pysched-bench-") as folder, running() as server:
        loop = build(Path(folder)).file_loop
        print(server.durability())
        race = Race(
            {
                INTAKE: lambda: _intake(server, Path(folder, "queue"), options.count),
                LOOP: lambda: _loop(server, loop, Path(folder, "queue"), options.count),
            },
            rounds=options.rounds,
        )
    print(race.table(INTAKE, options.count))
    delays_ms = sorted(_pickups())
    print(
        f"pick-up of one file: p50 {statistics.median(delays_ms):.1f} ms,"
        f" p99 {delays_ms[int(len(delays_ms) * 0.99) - 1]:.1f} ms, of {len(delays_ms)}"
    )
    return 0


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"noop-{number}.task").write_bytes(_CONTENT)


def _intake(server: Server, folder: Path, count: int) -> Lap:
    _fill(folder, count)
    with server.database() as url, Store(url) as store:
        store.migrate()
        source = uuid.uuid4()
        intake = Intake(folder, lambda tasks: store.accept(tasks, source=source, atomic=False), poll_s=1.0)
        cpu_s, start = _cpu_s() + server.cpu_s(), time.perf_counter()
        intake.take_all()
        seconds = time.perf_counter() - start
        cpu_s = _cpu_s() + server.cpu_s() - cpu_s
        intake.stop()
        assert store.submitted() == count
        assert not os.listdir(folder)
    return Lap(seconds, cpu_s)


def _loop(server: Server, program: str, folder: Path, count: int) -> Lap:
    _fill(folder, count)
    with server.database() as url:
        with Store(url) as store:
            store.migrate()
        with raw.connect(url) as conn:
            out = subprocess.run([program, str(folder)], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            batches = [raw.new_tasks(start, 1_000) for start in range(0, count, 1_000)]
            cpu_s, start = _cpu_s() + server.cpu_s(), time.perf_counter()
            for batch in batches:
                raw.accept(conn, batch)
            seconds = time.perf_counter() - start
            return Lap(float(out[0]) + seconds, float(out[1]) + _cpu_s() + server.cpu_s() - cpu_s)


def _pickups() -> list[float]:
    delays_ms = []
    with node_running("run", "--workers", "1") as server:
        with EmbeddedServer(server.home).running() as url, Store(url) as store:
            store.set_paused(True)
        for number in range(PICKUPS):
            temporary, target = server.home / f"{number}.tmp", server.home / "queue" / f"{number}.task"
            temporary.write_bytes(_CONTENT)
            start = time.perf_counter()
            temporary.rename(target)
            while target.exists():
                time.sleep(0.0002)
            delays_ms.append((time.perf_counter() - start) * 1e3)
    return delays_ms


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
