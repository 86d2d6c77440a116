"""COUNT tasks through Celery's prefork pool of two, run by the interpreter of Celery's own environment.

    python celery_prefork.py noop COUNT     tasks that do nothing, no result kept: the least that Celery can do
    python celery_prefork.py calls COUNT    calls of a small function, each result fetched

A Redis of its own on a socket, in memory only: less than durable.  Prints the seconds from the first send to the last
run or result.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import celery
import redis
from celery.result import ResultSet

WORKERS = 2

_WORKER = f"""
import runpy, sys
program, folder = sys.argv[1:]
app = runpy.run_path(program, run_name="worker")["made"](folder)
app.worker_main(["worker", "-c", "{WORKERS}", "-P", "prefork", "-l", "ERROR",
                 "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""


def made(folder: str) -> celery.Celery:
    url = f"redis+socket://{folder}/redis.sock"
    app = celery.Celery("peer", broker=url, backend=url)
    app.conf.update(worker_prefetch_multiplier=500, broker_pool_limit=None)
    client = redis.Redis(unix_socket_path=f"{folder}/redis.sock")  # connects in the process that first uses it

    def noop() -> None:
        client.incr("ended")

    app.task(name="noop", ignore_result=True)(noop)
    app.task(name="call")(call)
    return app


def call(number: int) -> dict[str, int]:
    return {"number": number}


def main() -> None:
    lap = {"noop": _noops, "calls": _calls}[sys.argv[1]]
    count = int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="pysched-bench-") as folder, _redis(folder), _workers(folder):
        print(f"{lap(folder, count):.6f} 0", flush=True)


@contextlib.contextmanager
def _redis(folder: str) -> Iterator[None]:
    command = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        f"{folder}/redis.sock",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with _running(subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)):
        while not Path(folder, "redis.sock").exists():
            time.sleep(0.01)
        yield


@contextlib.contextmanager
def _workers(folder: str) -> Iterator[None]:
    command = [sys.executable, "-c", _WORKER, __file__, folder]
    with _running(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)):
        made(folder).send_task("call", args=(0,)).get(timeout=60)  # warm
        yield


@contextlib.contextmanager
def _running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _noops(folder: str, count: int) -> float:
    app = made(folder)
    client = redis.Redis(unix_socket_path=f"{folder}/redis.sock")
    start = time.perf_counter()
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            app.send_task("noop", producer=producer, ignore_result=True)
    while int(client.get("ended") or 0) < count:
        time.sleep(0.002)
    return time.perf_counter() - start


def _calls(folder: str, count: int) -> float:
    app = made(folder)
    start = time.perf_counter()
    with app.producer_pool.acquire(block=True) as producer:
        results = [app.send_task("call", args=(number,), producer=producer) for number in range(count)]
    assert len(ResultSet(results).join_native(timeout=120)) == count
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
