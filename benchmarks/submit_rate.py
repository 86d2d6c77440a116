"""How close does a durable POST /submit come to a FastAPI route that does nothing?

    python -m benchmarks.submit_rate [--rounds 5] [--seconds 3]

Both servers run side by side, each on one uvicorn worker, and get the same requests in turns: the control plane on a
database of its own, without a node, and a route with a pydantic model of the four fields that are sent.  The ratio of
each round is what counts; CPU is that of the server's process, for each request.  After them PostgreSQL alone: one
connection that inserts as many such rows a commit as the control plane has just grouped, made up by the server itself.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import psycopg

from benchmarks import http_load
from benchmarks.server import control_plane
from pysched.store.embedded import EmbeddedServer

BODY = b'{"name": "bench", "priority": "HIGH", "type": "system", "duration_ms": 100}'

NOOP = """
import sys
from typing import Literal
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

class Task(BaseModel):
    name: str
    priority: Literal["HIGH", "MED", "LOW"] = "MED"
    type: Literal["system", "ml"] = "system"
    duration_ms: int = 100

class Accepted(BaseModel):
    id: str
    status: str

app = FastAPI()

@app.post("/submit", status_code=201)
async def submit(task: Task) -> Accepted:
    return Accepted(id=task.name, status="queued")

config = uvicorn.Config(app, port=int(sys.argv[1]), access_log=False, log_level="error")
uvicorn.Server(config).run()
"""


GROUP = "SELECT count(*)::float8 / count(DISTINCT submitted_at) FROM pysched.tasks WHERE submitted_at >= %s"
COMMIT = """
INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at)
SELECT gen_random_uuid()::text, 'bench', 'system', 0, 0, '{"name":"bench","priority":"HIGH"}', 'queued', now()
FROM generate_series(1, %s)
"""


def bare_commits(conn: psycopg.Connection[tuple[object, ...]], since: object, seconds: float) -> tuple[float, float]:
    """Rows a second, and how many a commit: as many as have been grouped since then."""
    ((group,),) = conn.execute(GROUP, (since,)).fetchall()
    assert isinstance(group, float)
    rows = max(1, round(group))
    commits, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        conn.execute(COMMIT, (rows,), prepare=True)
        commits += 1
    return commits * rows / (time.perf_counter() - start), group


@contextmanager
def noop(port: int) -> Iterator[psutil.Process]:
    with subprocess.Popen([sys.executable, "-c", NOOP, str(port)]) as process:
        try:
            http_load.await_port(port)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    port = http_load.free_port()
    with (
        noop(port) as idle,
        control_plane() as server,
        EmbeddedServer(server.home).running() as url,
        psycopg.connect(url, autocommit=True) as conn,
    ):
        wholes = {"pysched": (server.port, server.token, psutil.Process(server.pid)), "no-op": (port, "none", idle)}
        for connections in (16, 256):
            rates: dict[str, list[float]] = {name: [] for name in wholes}
            costs: dict[str, list[float]] = {name: [] for name in wholes}
            tails: dict[str, list[float]] = {name: [] for name in wholes}
            bare: list[float] = []
            groups: list[float] = []
            for _ in range(options.rounds):
                ((begun,),) = conn.execute("SELECT clock_timestamp()").fetchall()
                for name, (to, token, process) in wholes.items():
                    request = functools.partial(http_load.request, "/submit", BODY, port=to, token=token)
                    before, start = sum(process.cpu_times()[:2]), time.perf_counter()
                    count, latencies = http_load.run(to, request, connections=connections, seconds=options.seconds)
                    rates[name].append(count / (time.perf_counter() - start))
                    costs[name].append((sum(process.cpu_times()[:2]) - before) / count * 1e6)
                    tails[name].append(statistics.quantiles(latencies, n=100)[-1] * 1e3)
                rows_per_s, group = bare_commits(conn, begun, options.seconds)
                bare.append(rows_per_s)
                groups.append(group)
            ratios = [ours / theirs for ours, theirs in zip(rates["pysched"], rates["no-op"], strict=True)]
            print(
                f"{connections:>4} connections: {statistics.median(ratios):.2f}x a no-op route "
                f"({min(ratios):.2f} … {max(ratios):.2f} in {options.rounds} rounds)"
            )
            for name in wholes:
                print(
                    f"     {name:<8} {statistics.median(rates[name]):>7.0f}/s, "
                    f"{statistics.median(costs[name]):.0f} µs CPU, p99 {statistics.median(tails[name]):.1f} ms"
                )
            shares = [ours / alone for ours, alone in zip(rates["pysched"], bare, strict=True)]
            print(
                f"     {statistics.median(shares):.2f}x PostgreSQL alone ({min(shares):.2f} … {max(shares):.2f}): "
                f"{statistics.median(bare):.0f} rows/s in commits of {statistics.median(groups):.0f}"
            )


if __name__ == "__main__":
    main()
