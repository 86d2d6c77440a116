"""What does it cost a claim that tasks may ask for processors, memory and GPUs?

    python -m benchmarks.claim_cost [--count 4000] [--rounds 7]

Three queues of `count` tasks, emptied by claims of one and of 64, interleaved: tasks that ask for nothing, by the
statement of today; the same by that statement without its look at `sized`, as it was before; and tasks that ask for a
processor, of which the node has enough.  Wall time of the claims alone, medians with the spread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from benchmarks.durable.server import running
from pysched.model import NodeInfo, Priority
from pysched.store import claiming
from pysched.store.store import Store
from pysched.task import Task

PROBE = b"AND NOT EXISTS (SELECT FROM pysched.tasks WHERE place = 'sized')"
NOW, BEFORE, SIZED = "asks for nothing", "the same, before", "asks for a processor"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found: dict[tuple[str, int], list[float]] = {}
    with running() as server, server.database() as url, Store(url) as store:
        store.migrate()
        for _ in range(options.rounds):
            for size in (1, 64):
                for name in (NOW, BEFORE, SIZED):
                    taken_s = _lap(store, options.count // (10 if size == 1 else 1), size, name)
                    found.setdefault((name, size), []).append(taken_s)
    for size in (1, 64):
        base = statistics.median(found[BEFORE, size])
        for name in (NOW, BEFORE, SIZED):
            laps = found[name, size]
            middle = statistics.median(laps)
            print(
                f"claims of {size:2}, {name:20}  {middle / base:4.2f}×  {middle * 1e6:6.1f} µs a task"
                f" ({min(laps) * 1e6:.1f} … {max(laps) * 1e6:.1f})"
            )
    return 0


def _lap(store: Store, count: int, size: int, name: str) -> float:
    """Seconds a task."""
    source, node = uuid.uuid4(), uuid.uuid4()
    store.register(NodeInfo(incarnation=node, home=node, host="b", pid=1, workers=1, lanes=1, version="0"), 3600.0)
    asks = 1.0 if name == SIZED else None
    tasks = [Task(id=str(uuid.uuid4()), command="true", cpus=asks) for _ in range(count)]
    store.accept(tasks, source=source, atomic=True)
    queries = claiming._QUERIES
    if name == BEFORE:
        claiming._QUERIES = SimpleNamespace(**{**vars(queries), "claim": queries.claim.replace(PROBE, b"")})
    try:
        return _drain(store.claimer(node).claim, count, size) / count
    finally:
        claiming._QUERIES = queries


def _drain(claim: Callable[..., Sequence[object]], count: int, size: int) -> float:
    claimed, begun = 0, time.perf_counter()
    while claimed < count:
        claimed += len(claim(lowest=Priority.LOW, limit=size))
    return time.perf_counter() - begun


if __name__ == "__main__":
    raise SystemExit(main())
