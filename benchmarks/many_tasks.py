"""How long do pages of tasks and /stats take with very many rows?

    python -m benchmarks.many_tasks [--rows 1000000] [--calls 200]

The rows are made in the database by the server's own generate_series: most have ended, a share waits.  Each question is
asked over HTTP, one at a time, at pages spread over all of the table; p50 and p99 in ms, after a few calls that do not
count.
"""

from __future__ import annotations

import argparse
import http.client
import random
import statistics
import time
from collections.abc import Callable
from urllib.parse import urlencode

import psycopg

from benchmarks.server import ControlPlane, control_plane
from pysched.store.embedded import EmbeddedServer

CHUNK = 250_000
WARM_UP = 5

# Triggers stay on for the tags; ids and names as a service makes them.
FILL = """
INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, started_at, finished_at, run_ms)
SELECT 'job-' || n, 'nightly-' || n %% 1000, 'system', n %% 3, 0,
    CASE WHEN n %% 100 = 0 THEN '{"command":"run ' || n || '","tags":["team-' || n %% 7 || '"]}'
         ELSE '{"command":"run ' || n || '"}' END,
    CASE WHEN n %% 10 = 0 THEN 'queued' WHEN n %% 1000 = 1 THEN 'failed' ELSE 'succeeded' END,
    '2026-01-01Z'::timestamptz + n * interval '1 second',
    CASE WHEN n %% 10 > 0 THEN '2026-01-01Z'::timestamptz + n * interval '1 second' END,
    CASE WHEN n %% 10 > 0 THEN '2026-01-01Z'::timestamptz + n * interval '1 second' END, 10
FROM generate_series(%s::bigint, %s::bigint) AS n
"""
TALLIES = """
INSERT INTO pysched.tallies (source, kind, priority, total)
SELECT gen_random_uuid(), kind, priority, count(*) FROM pysched.tasks, unnest(ARRAY['submitted',
    CASE WHEN finished_at IS NOT NULL THEN state END]) AS kind WHERE kind IS NOT NULL GROUP BY kind, priority
"""


def fill(url: str, rows: int) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for start in range(0, rows, CHUNK):
            conn.execute(FILL, (start + 1, min(start + CHUNK, rows)))
        conn.execute(TALLIES)
        conn.execute("VACUUM ANALYZE pysched.tasks, pysched.tags, pysched.tallies")


def questions(rows: int) -> dict[str, Callable[[random.Random], str]]:
    def page(**query: object) -> Callable[[random.Random], str]:
        def make(choice: random.Random) -> str:
            return "/tasks?" + urlencode({**query, "before": choice.randint(1, rows)}, doseq=True)

        return make

    return {
        "newest page": lambda _: "/tasks",
        "any page": page(),
        "status=failed": page(status="failed"),
        "status=queued": page(status="queued"),
        "three states": page(status=["failed", "queued", "cancelled"]),
        "priority, type": page(priority="HIGH", type="system"),
        "tag": page(tag="team-3"),
        "tag that none has": page(tag="nobody"),
        "several tags": page(tag=["team-3", "team-4"]),
        "node": page(node="00000000-0000-4000-8000-000000000000"),
        "finished in a day": page(finished_since="2026-01-03T00:00:00Z", finished_until="2026-01-04T00:00:00Z"),
        "id prefix of few": lambda choice: f"/tasks?id=job-{choice.randint(1, rows)}",
        "id prefix of many": page(id="job-1"),
        "name prefix": page(name="nightly-77"),
        "name that none has": page(name="weekly"),
        "text": page(text="RUN 77"),
        "text that none has": page(text="weekly"),
        "everything": page(
            status="succeeded",
            priority="LOW",
            type="system",
            tag="team-5",
            id="job-",
            name="nightly-1",
            text="run",
            submitted_since="2026-01-01T00:00:00Z",
            finished_until="2027-01-01T00:00:00Z",
        ),
        "a day": lambda choice: (
            "/tasks?"
            + urlencode(
                {
                    "submitted_since": "2026-01-03T00:00:00Z",
                    "submitted_until": "2026-01-04T00:00:00Z",
                    "status": "failed",
                }
            )
        ),
        "one task": lambda choice: f"/tasks/job-{choice.randint(1, rows)}",
        "explain": lambda choice: f"/tasks/job-{choice.randint(1, rows // 10) * 10}/explain",
        "/stats": lambda _: "/stats",
        "/metrics": lambda _: "/metrics",
    }


def measure(server: ControlPlane, make: Callable[[random.Random], str], calls: int) -> list[float]:
    choice = random.Random(1)
    channel = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    took: list[float] = []
    for number in range(-WARM_UP, calls):
        path = make(choice)
        start = time.perf_counter()
        channel.request("GET", path, headers={"Authorization": f"Bearer {server.token}"})
        answer = channel.getresponse()
        answer.read()
        if number >= 0:
            took.append((time.perf_counter() - start) * 1e3)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    channel.close()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    with control_plane() as server, EmbeddedServer(server.home).running() as url:
        start = time.perf_counter()
        fill(url, options.rows)
        print(f"{options.rows:,} rows, made in {time.perf_counter() - start:.0f} s")
        for name, make in questions(options.rows).items():
            took = measure(server, make, options.calls)
            p99 = statistics.quantiles(took, n=100)[-1]
            print(f"  {name:<20} p50 {statistics.median(took):>7.1f} ms  p99 {p99:>7.1f} ms")


if __name__ == "__main__":
    main()
