"""The columns of `profiler.csv`, which `pysched.profiler` writes and `pysched.plot` reads (CONTRACT § Files)."""

from __future__ import annotations

COLUMNS = (
    "ts_ms",  # end of the second, epoch milliseconds
    "throughput",  # finished attempts a second
    "queued_high",  # tasks waiting now
    "queued_med",
    "queued_low",
    "running",  # attempts running now
    "submitted",  # totals since the node started
    "succeeded",
    "failed",
    "retried",
    "cancelled",
    "wait_p50_ms",  # over the attempts that ended in the last second; empty without any
    "wait_p95_ms",
    "wait_p99_ms",
    "run_p50_ms",
    "run_p95_ms",
    "cpu_pct",  # of the whole machine, 0 … 100
    "rss_mb",  # resident memory of the node's own process, MiB
)
HEADER = ",".join(COLUMNS)
