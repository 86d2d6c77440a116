"""COUNT no-op tasks through Celery with a Redis broker, run by the interpreter of Celery's own environment.

    python celery_noop.py COUNT

A Redis of its own on a socket, in memory only and with no results kept: the least that Celery can do, and less than
durable.  Prints the seconds from the first send to the last run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import celery
import redis

SOCKET = "redis.sock"
WORKERS = 2

folder = Path(tempfile.gettempdir()) if len(sys.argv) < 3 else Path(sys.argv[2])
app = celery.Celery("noop", broker=f"redis+socket://{folder / SOCKET}")
app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=500, broker_pool_limit=None)


@app.task(name="noop")  # type: ignore[untyped-decorator]
def noop() -> None:
    redis_client().incr("ended")


_WORKER = f"""
import runpy, sys
program, folder = sys.argv[1:]
sys.argv = [program, "0", folder]
app = runpy.run_path(program, run_name="worker")["app"]
app.worker_main(["worker", "-c", "{WORKERS}", "-P", "prefork", "-l", "ERROR",
                 "--without-gossip", "--without-mingle", "--without-heartbeat"])
"""
_clients: list[redis.Redis] = []


def redis_client() -> redis.Redis:
    if not _clients:
        _clients.append(redis.Redis(unix_socket_path=str(folder / SOCKET)))
    return _clients[0]


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="pysched-bench-") as name:
        server = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", f"{name}/{SOCKET}", "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
            cwd=name,
        )
        try:
            while not Path(name, SOCKET).exists():
                time.sleep(0.01)
            print(f"{_lap(name, count):.6f} 0", flush=True)
        finally:
            server.terminate()
            server.wait()


def _lap(name: str, count: int) -> float:
    client = redis.Redis(unix_socket_path=f"{name}/{SOCKET}")
    sender = celery.Celery("noop", broker=f"redis+socket://{name}/{SOCKET}")
    command = [sys.executable, "-c", _WORKER, __file__, name]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        sender.send_task("noop")
        while int(client.get("ended") or 0) < 1:  # warm
            time.sleep(0.01)
        start = time.perf_counter()
        with sender.producer_pool.acquire(block=True) as producer:
            for _ in range(count):
                sender.send_task("noop", producer=producer, ignore_result=True)
        while int(client.get("ended") or 0) < count + 1:
            time.sleep(0.002)
        return time.perf_counter() - start
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    main()
