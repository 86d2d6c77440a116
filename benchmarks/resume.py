"""After how long does work go on when the database is back?

    python -m benchmarks.resume [--rounds 3]

One node on a PostgreSQL of its own, which is stopped in each of three ways, for a moment, for some seconds and for
longer than a lease.  While it is down a `.task` file comes in, and a job that runs ends.  The clock runs from when the
server accepts a connection again until the `.done` files of both are there.  The node reaches the server over TCP,
through a proxy that closes what the server refuses: the slower way, since a refusal there proves nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.world import World, wait_for

MUST_REACH_S = 5.0
PATIENCE_S = 120.0
STOPS = {
    "fast shutdown": signal.SIGINT,
    "immediate shutdown": signal.SIGQUIT,
    "kill -9 of the postmaster": signal.SIGKILL,
}
DOWN_S = (0.5, 4.0, 13.0)


def drop(world: World, name: str, command: str) -> None:
    temporary = world.root / f"{name}.tmp"
    temporary.write_text(json.dumps({"command": command, "max_retries": 0}))
    os.rename(temporary, world.queue / f"{name}.task")


def is_running(world: World, name: str) -> bool:
    with world.cluster.connect() as conn:
        row = conn.execute("SELECT state FROM pysched.tasks WHERE id = %s", [name]).fetchone()
    return row == ("running",)


def outage(world: World, number: int, wish: signal.Signals, down_s: float) -> float:
    """One outage; seconds from its end until all that waited is done."""
    fifo = world.root / f"fifo{number}"
    os.mkfifo(fifo)
    before, during = f"before{number}", f"during{number}"
    drop(world, before, f"read line <{fifo}")
    wait_for(lambda: is_running(world, before), "a job to run", PATIENCE_S, world.last_words)
    world.cluster.stop(wish)
    stopped = time.monotonic()
    fifo.write_text("\n")
    drop(world, during, "true")
    time.sleep(max(0.0, stopped + down_s - time.monotonic()))  # the outage itself
    world.cluster.start()
    accepts = time.monotonic()
    files = [world.nodes[0].completed / f"{name}.done" for name in (before, during)]
    wait_for(lambda: all(file.exists() for file in files), ".done files", PATIENCE_S, world.last_words)
    took_s = time.monotonic() - accepts
    for file in files:
        check(file)
    return took_s


def check(file: Path) -> None:
    record = json.loads(file.read_text())
    if (record["status"], record["attempts"]) != ("succeeded", 1):
        raise SystemExit(f"{file.name}: {record['status']} after {record['attempts']} attempts, {record['reason']}")


def measure(rounds: int) -> Iterator[tuple[str, float, float]]:
    """(how it stopped, for how long it was down, seconds until work had gone on)"""
    numbers = itertools.count(1)
    with World(nodes=1, workers=4) as world:
        for _ in range(rounds):
            for (name, wish), down_s in itertools.product(STOPS.items(), DOWN_S):
                yield name, down_s, outage(world, next(numbers), wish, down_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    took: dict[str, list[float]] = {}
    for name, down_s, seconds in measure(parser.parse_args().rounds):
        for key in (name, f"down for {down_s:g} s", "all"):
            took.setdefault(key, []).append(seconds)
    for key, times in took.items():
        print(f"{key:28} median {statistics.median(times):.2f} s, worst {max(times):.2f} s, of {len(times)} outages")
    return int(max(took["all"]) > MUST_REACH_S)


if __name__ == "__main__":
    sys.exit(main())
