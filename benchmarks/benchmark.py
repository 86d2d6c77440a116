"""How fast does a running pysched take tasks, start them and finish them, seen from outside?

    python benchmarks/benchmark.py --count 500 --url http://127.0.0.1:8321

Submits the mixed workload of `api/client.py` (`--mode single`: one request a task; `batch`: one for all),
waits until all have ended and prints quantiles.  Latencies of submission are taken here; wait and total are the
server's own records: submission to first start, and submission to end.  Exit 0 only if all succeeded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pysched.api.client import Arguments, add_common, percentile, run, submit_each, workload
from pysched.client import Client

QUANTILES = (50, 95, 99)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Arguments(prog="benchmark.py", description="Measure a running pysched from outside.")
    add_common(parser, count=500)
    parser.add("mode", choices=("single", "batch"), default="single", help="one request a task, or one for all")
    return run(_measure, parser, arguments)


def _measure(options: argparse.Namespace) -> int:
    tasks = workload(options.count, options.ml_ratio, options.duration_ms)
    with Client(options.url, options.token) as client:
        if options.mode == "batch":
            start = time.perf_counter()
            ids = [accepted["id"] for accepted in client.submit_many(tasks)]
            submit_s = time.perf_counter() - start
            latencies = [submit_s * 1e3]
        else:
            ids, latencies, submit_s = submit_each(client, tasks, options.connections)
        ended = list(client.wait(ids, options.timeout).values())
    print(report(ended, latencies, submit_s))
    return 0 if all(task["status"] == "succeeded" for task in ended) else 1


def report(ended: Sequence[Mapping[str, Any]], latencies_ms: Sequence[float], submit_s: float) -> str:
    """The table, from the server's records of all tasks and the latencies of the requests that submitted them."""
    submitted = [_seconds(task["submitted_at"]) for task in ended]
    finished = [_seconds(task["finished_at"]) for task in ended]
    elapsed_s = max(finished) - min(submitted)
    statuses = sorted({task["status"] for task in ended})
    rows = {
        "submit": latencies_ms,
        "wait": [task["wait_ms"] for task in ended if task["wait_ms"] is not None],
        "total": [(end - start) * 1e3 for start, end in zip(submitted, finished, strict=True)],
    }
    by_status = ", ".join(f"{sum(task['status'] == status for task in ended)} {status}" for status in statuses)
    rate = len(ended) / elapsed_s * 60
    lines = [
        f"tasks       {len(ended)} ({by_status})",
        f"submitted   in {submit_s:.2f} s, {len(ended) / submit_s:.0f} tasks/s",
        f"throughput  {rate:.0f} tasks/min ({elapsed_s:.2f} s from the first submission to the last end)",
        "latency ms  " + "".join(f"{f'p{percent}':>12}" for percent in QUANTILES),
    ]
    for name, values in rows.items():
        lines.append(f"  {name:<10}" + "".join(f"{percentile(values, percent):>12.1f}" for percent in QUANTILES))
    return "\n".join(lines)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


if __name__ == "__main__":
    sys.exit(main())
