"""How fast are many tasks taken at once, against PostgreSQL's own COPY of the same rows?

    python -m benchmarks.batch_rate [--tasks 50000] [--rounds 5]

In turns on one database, in either order: POST /submit/batch of NDJSON, and of a JSON array; COPY of the same rows into
a copy of the table, its indexes and generated columns included.  Each commits once.  CPU is that of the server, a
task; the memory is its growth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import uuid
from collections.abc import Callable

import psutil
import psycopg

from benchmarks.server import ControlPlane, control_plane
from pysched.client import Client
from pysched.store.embedded import EmbeddedServer
from pysched.task import parse_task

COPY = (
    b"COPY scratch (id, sequence, name, type, priority, rank, spec, state, submitted_at) FROM STDIN"  # as accept does
)


def bodies(count: int) -> tuple[list[dict[str, object]], bytes, bytes]:
    tasks: list[dict[str, object]] = [
        {"id": str(uuid.uuid4()), "name": f"task {number}", "priority": "LOW", "command": f"echo {number}"}
        for number in range(count)
    ]
    lines = [json.dumps(task).encode() for task in tasks]
    return tasks, b"\n".join(lines), b"[" + b",".join(lines) + b"]"


def post(client: Client, server: ControlPlane, body: bytes, media_type: str) -> float:
    import httpx2 as httpx

    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": media_type}
    start = time.perf_counter()
    answer = httpx.post(f"{client.url}/submit/batch", content=body, headers=headers, timeout=600)
    seconds = time.perf_counter() - start
    if answer.status_code != 201:
        raise RuntimeError(answer.text)
    return seconds


def copy(url: str, tasks: list[dict[str, object]]) -> float:
    rows = [
        (task["id"], number, task["name"], "system", 2, 0, parse_task(task).spec(), "queued", "now")
        for number, task in enumerate(tasks)
    ]
    with psycopg.connect(url) as conn:
        conn.execute("DROP TABLE IF EXISTS scratch")
        conn.execute("CREATE TABLE scratch (LIKE pysched.tasks INCLUDING ALL EXCLUDING IDENTITY)")
        conn.commit()
        start = time.perf_counter()
        with conn.cursor().copy(COPY) as into:
            for row in rows:
                into.write_row(row)
        conn.commit()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"COPY": [], "NDJSON": [], "array": []}
    costs: dict[str, list[float]] = {name: [] for name in seconds}
    with control_plane() as server, Client(home=server.home) as client, EmbeddedServer(server.home).running() as url:
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        for number in range(options.rounds):
            measures: dict[str, Callable[[], float]] = {}
            tasks, lines, array = bodies(options.tasks)
            measures["COPY"] = lambda tasks=tasks: copy(url, tasks)  # type: ignore[misc]
            measures["NDJSON"] = lambda body=lines: post(client, server, body, "application/x-ndjson")  # type: ignore[misc]
            _, _, array = bodies(options.tasks)
            measures["array"] = lambda body=array: post(client, server, body, "application/json")  # type: ignore[misc]
            for name in sorted(measures, reverse=number % 2 == 1):
                begun = sum(process.cpu_times()[:2])
                seconds[name].append(measures[name]())
                costs[name].append((sum(process.cpu_times()[:2]) - begun) / options.tasks * 1e6)
        peak = process.memory_full_info().rss
    for name in ("NDJSON", "array"):
        ratios = [base / own for base, own in zip(seconds["COPY"], seconds[name], strict=True)]
        print(
            f"{name:<7} {statistics.median(ratios):.2f}x COPY ({min(ratios):.2f} … {max(ratios):.2f}), "
            f"{options.tasks / statistics.median(seconds[name]):,.0f} tasks/s, "
            f"{statistics.median(costs[name]):.0f} µs CPU; "
            f"COPY {options.tasks / statistics.median(seconds['COPY']):,.0f} rows/s"
        )
    print(f"memory  +{(peak - before) / 2**20:.0f} MiB after {2 * options.rounds} batches of {options.tasks}")


if __name__ == "__main__":
    main()
