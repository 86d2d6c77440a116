"""After how long does what a dead node held run again elsewhere?

    python -m benchmarks.reclaim [--rounds 20] [--tasks 4]

Two nodes on one database, each with its own home.  One is killed with its guard (KILL) while it runs jobs that never
end; the clock runs from the kill until the store has the last of them running under the other node.  Bounded: a round
takes a lease (10 s) and a few seconds.  The node that was killed is replaced between rounds, on a new home.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from pysched.engine.lease import LEASE_S, RENEW_S
from pysched.model import State
from pysched.store.embedded import EmbeddedServer
from pysched.store.store import Store
from pysched.task import Task

MUST_REACH_S = 15.0
PATIENCE_S = 120.0


class Node:
    """`scheduler run` with a guard, in a session of its own."""

    def __init__(self, root: Path, database: str, workers: int) -> None:
        root.mkdir()
        self._log = root / "log"
        with self._log.open("wb") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "pysched.cli", "run", "--home", str(root / "home"), "--workers", str(workers)],
                env={**os.environ, "PYSCHED_DATABASE": database},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        await_(lambda: b"ready" in self._log.read_bytes())

    def kill(self) -> None:
        pid = self._guard.pid
        self._guard.send_signal(signal.SIGSTOP)  # it starts no other node meanwhile
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._guard.kill()
        self._guard.wait()

    def stop(self) -> None:
        for _ in range(2):  # at once
            self._guard.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(1)
        self._guard.wait()


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("nothing happens; see the nodes' logs")
        time.sleep(0.02)


def running(conn: psycopg.Connection[tuple[int]], attempt: int) -> int:
    row = conn.execute(
        "SELECT count(*) FROM pysched.tasks WHERE state = %s AND attempts = %s", (State.RUNNING.value, attempt)
    ).fetchone()
    return 0 if row is None else row[0]


def rounds(root: Path, url: str, count: int, tasks: int) -> Iterator[float]:
    holder = Node(root / "node0", url, tasks)
    other = None
    with Store(url) as store, psycopg.connect(url, autocommit=True) as conn:
        try:
            for number in range(1, count + 1):
                work = [Task(id=f"r{number}.{index}", command=["sleep", "3600"]) for index in range(tasks)]
                store.accept(work, source=uuid.UUID(int=number), atomic=False)
                await_(lambda: running(conn, 1) == tasks)
                other = Node(root / f"node{number}", url, tasks)
                # The other has to have kept its own lease for a while before it judges; in a fleet it has.
                time.sleep(LEASE_S + RENEW_S)
                killed = time.monotonic()
                holder.kill()
                await_(lambda: running(conn, 2) == tasks)
                yield time.monotonic() - killed
                for index in range(tasks):
                    store.cancel(f"r{number}.{index}")
                await_(lambda: running(conn, 2) == 0)
                holder, other = other, None
        finally:
            for node in (holder, other):
                if node is not None:
                    node.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pysched-") as name:
        root = Path(name)
        root.chmod(0o711)
        server = EmbeddedServer(root / "database")
        try:
            with server.running() as url:
                took = sorted(rounds(root, url, arguments.rounds, arguments.tasks))
        finally:
            server.destroy()
    p99 = took[min(len(took) - 1, round(0.99 * len(took)))]
    print(f"reclaim of {arguments.tasks} jobs, {len(took)} rounds: "
          f"median {took[len(took) // 2]:.1f} s, p99 {p99:.1f} s, worst {took[-1]:.1f} s")  # fmt: skip
    sys.exit(p99 > MUST_REACH_S)


if __name__ == "__main__":
    main()
