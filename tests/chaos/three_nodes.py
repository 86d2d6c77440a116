"""Three nodes, many tasks; one node is killed, another stands still for longer than its lease: all end, all once.

python -m tests.chaos.three_nodes --tasks 20000
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from tests.chaos import processes
from tests.chaos.episode import Report, judge
from tests.chaos.workload import Clients, Job, Order, make_task
from tests.chaos.world import World, stopped, wait_for

STOP_S = 30.0
_LONG_MS = 2_000  # of one task in fifty: something runs whenever a fault strikes
_BATCH = 1_000
_START_S = 120.0


def run(count: int, *, stop_s: float = STOP_S) -> Report:
    """`count` tasks in batches over HTTP; the first fault comes when the first jobs run."""
    began = time.monotonic()
    report = Report(0)
    with World(nodes=3, workers=8) as world:
        tasks = [
            make_task(world, f"t{number}", Job(_LONG_MS if number % 50 == 0 else 1), max_retries=8, **_kind(number))
            for number in range(count)
        ]
        batches = [Order("batch", tuple(tasks[at : at + _BATCH]), patient=True) for at in range(0, count, _BATCH)]
        clients = Clients(world, batches, parallel=2)
        clients.start()
        wait_for(lambda: holders(world) == 3, "all three nodes to hold tasks", _START_S, world.last_words)
        _, victim = world.nodes[0].parts()
        report.kills += victim is not None and processes.kill(victim)
        guard, sleeper = world.nodes[1].parts()
        with contextlib.ExitStack() as stack:
            still = [stack.enter_context(stopped(pid)) for pid in (guard, sleeper) if pid is not None]
            time.sleep(stop_s)  # the fault itself
        report.others += all(still)
        judge(world, clients, report, settle_s=600.0)
    report.seconds = time.monotonic() - began
    return report


def _kind(number: int) -> dict[str, Any]:
    """One task in ten calls an entrypoint in a process that others have used, another one asks for resources."""
    if number % 10 == 3:
        return {"call": True, "reuse": True}
    return {"cpus": 1, "mem": "64MiB"} if number % 10 == 7 else {}


def holders(world: World) -> int:
    """How many nodes hold tasks."""
    with world.cluster.connect() as conn:
        row = conn.execute("SELECT count(DISTINCT holder) FROM pysched.tasks WHERE token IS NOT NULL").fetchone()
    assert row is not None
    return int(row[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.three_nodes", description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--stop", type=float, default=STOP_S, metavar="SECONDS")
    given = parser.parse_args()
    report = run(given.tasks, stop_s=given.stop)
    print(report)
    for violation in report.violations[:50]:
        print(f"VIOLATION {violation}")
    return 1 if report.violations or not (report.kills and report.others) else 0


if __name__ == "__main__":
    sys.exit(main())
