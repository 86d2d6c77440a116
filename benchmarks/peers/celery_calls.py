"""COUNT calls of a small function through Celery's prefork pool of two, results kept in Redis.

Run by the interpreter of Celery's own environment.

    python celery_calls.py COUNT

A Redis of its own on a socket, in memory only: less than durable.  Prints the seconds from the first send to the last
result.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import celery
from celery.result import ResultSet

SOCKET = "redis.sock"
WORKERS = 2

_WORKER = f"""
import runpy, sys
program, folder = sys.argv[1:]
app = runpy.run_path(program, run_name="worker")["made"](folder)
app.worker_main(["worker", "-c", "{WORKERS}", "-P", "prefork", "-l", "ERROR",
                 "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""


def made(folder: str) -> celery.Celery:
    app = celery.Celery(
        "calls", broker=f"redis+socket://{folder}/{SOCKET}", backend=f"redis+socket://{folder}/{SOCKET}"
    )
    app.conf.update(worker_prefetch_multiplier=500, broker_pool_limit=None)
    app.task(name="call")(call)
    return app


def call(number: int) -> dict[str, int]:
    return {"number": number}


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="pysched-bench-") as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", f"{folder}/{SOCKET}", "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
            cwd=folder,
        )
        try:
            while not Path(folder, SOCKET).exists():
                time.sleep(0.01)
            print(f"{_lap(folder, count):.6f} 0", flush=True)
        finally:
            server.terminate()
            server.wait()


def _lap(folder: str, count: int) -> float:
    app = made(folder)
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, __file__, folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        app.send_task("call", args=(0,)).get(timeout=60)  # warm
        start = time.perf_counter()
        with app.producer_pool.acquire(block=True) as producer:
            results = [app.send_task("call", args=(number,), producer=producer) for number in range(count)]
        assert len(ResultSet(results).join_native(timeout=120)) == count
        return time.perf_counter() - start
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
