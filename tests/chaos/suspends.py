"""A machine that falls asleep again and again while timeouts, graces and the lease run out: nothing stays running.

    python -m tests.chaos.suspends --suspends 300

Every deadline is on CLOCK_BOOTTIME, so a suspend brings many due at once: TERM and KILL of the same attempt, and the
fence of the node that could not renew its lease.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.chaos.episode import Report, judge
from tests.chaos.workload import Clients, Job, Order, make_task
from tests.chaos.world import World

_WORKERS = 4
_PAUSES_S = (0.02, 0.1, 0.3, 0.8)
_SLEEPS_S = (0.3, 0.6, 1.0, 8.0, 15.0)  # about a timeout, about a grace; about a lease, more than one
_ENDLESS_MS = 3_600_000


def orders(world: World, rng: random.Random, count: int) -> Iterator[Order]:
    """Short ones, and such that only their timeouts end."""
    for number in range(count):
        fields: dict[str, Any]
        if rng.random() < 0.3:
            fields = {"timeout_s": 60.0, "max_retries": 20}
            job = Job(rng.choice((0, 50, 400)))
        else:
            fields = {"timeout_s": rng.choice((0.1, 0.4)), "max_retries": rng.randint(0, 1)}
            job = Job(_ENDLESS_MS)
        fields["grace_s"] = rng.choice((0.01, 0.1, 0.5))
        call = rng.random() < 0.3
        if call:
            fields["reuse"] = rng.random() < 0.6
        yield Order("file", (make_task(world, f"t{number}", job, call=call, **fields),), patient=True)


def run(seed: int, suspends: int) -> Report:
    began = time.monotonic()
    rng = random.Random(seed)
    report = Report(seed)
    pauses = [rng.choice(_PAUSES_S) for _ in range(suspends)]
    asleep = threading.Event()  # never set: to wait
    with World(nodes=1, workers=_WORKERS, clocks=True) as world:
        clients = Clients(world, list(orders(world, rng, 2 * suspends)), spread_s=sum(pauses))
        clients.start()
        for pause in pauses:
            asleep.wait(pause)
            world.nodes[0].clock.advance(boottime_s=rng.choice(_SLEEPS_S))
            report.others += 1
        judge(world, clients, report, settle_s=600.0)
    report.seconds = time.monotonic() - began
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.suspends", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--suspends", type=int, default=300)
    given = parser.parse_args()
    report = run(given.seed, given.suspends)
    print(report)
    for violation in report.violations[:50]:
        print(f"VIOLATION {violation}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
