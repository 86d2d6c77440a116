"""Does the store slow down with what it holds?  Claims and finishes in an almost empty table and in a full one.

    python -m benchmarks.store_scale [--rows 1000000] [--pin-s 60] [--batch 500]

The full one has ROWS tasks queued and as many that have ended, and a transaction that stays idle for PIN_S seconds with
a snapshot from before all claims, as a forgotten session or a dump does: until it ends, nothing that dies can be
removed.  Both take turns of 5,000 tasks, claimed and finished in batches; what counts is the ratio of each pair of
turns, of all and of the last quarter, when most is dead.  Before: how soon a store with 100,000 queued gives its first
claim, from the connection on.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from contextlib import ExitStack
from datetime import datetime, timezone

import psycopg

from benchmarks.durable.server import Server, running
from benchmarks.race import Ratio
from pysched import policy
from pysched.model import Claim, Exit, NodeInfo, Outcome, Priority
from pysched.store.claiming import Claimer
from pysched.store.store import Store
from pysched.task import Task

TURN = 5_000
_RULE = policy.RetryRule(max_retries=3, retry_delay_s=0.5)
_FILL = b"""
    INSERT INTO pysched.tasks (id, name, type, priority, rank, spec, state, submitted_at, finished_at)
    SELECT id, id, 'system', 1, 0, %(spec)s::text, %(state)s::text, now(),
        CASE WHEN %(state)s::text = 'succeeded' THEN now() END
    FROM (SELECT %(state)s::text || '-' || n AS id FROM generate_series(1, %(rows)s::integer) AS n) AS new
"""


class Table:
    """One store, and a node that claims and finishes."""

    def __init__(self, stack: ExitStack, server: Server, batch: int) -> None:
        self.url = stack.enter_context(server.database())
        self._store = stack.enter_context(Store(self.url))
        self._store.migrate()
        self._batch = batch
        self._home = uuid.uuid4()
        self._claimer = self._node()
        self._accepted = 0

    def fill(self, rows: int) -> None:
        with psycopg.connect(self.url, autocommit=True) as conn:
            for state in ("queued", "succeeded"):
                conn.execute(_FILL, {"state": state, "rows": rows, "spec": Task(command=["true"]).spec()})
            conn.execute("VACUUM ANALYZE pysched.tasks")

    def top_up(self) -> None:
        tasks = [Task(id=f"turn-{self._accepted + n}", command=["true"]) for n in range(TURN)]
        self._accepted += TURN
        self._store.accept(tasks, source=self._home, atomic=True)

    def turn(self) -> tuple[float, float]:
        """Seconds to claim, and to claim and finish, `TURN` tasks."""
        begin, left, claiming_s = time.perf_counter(), TURN, 0.0
        while left:
            start = time.perf_counter()
            claims = self._claimer.claim(lowest=Priority.LOW, limit=min(self._batch, left))
            claiming_s += time.perf_counter() - start
            self._store.finish([_succeeded(claim) for claim in claims], home=self._home)
            left -= len(claims)
        return claiming_s, time.perf_counter() - begin

    def first_claim_s(self) -> float:
        start = time.perf_counter()
        with Store(self.url) as store:
            store.migrate()
            assert self._node(store).claim(lowest=Priority.LOW, limit=8)
        return time.perf_counter() - start

    def _node(self, store: Store | None = None) -> Claimer:
        incarnation = uuid.uuid4()
        info = NodeInfo(incarnation=incarnation, home=uuid.uuid4(), host="b", pid=1, workers=1, lanes=1, version="0")
        (store or self._store).register(info, 7200.0)
        return (store or self._store).claimer(incarnation)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pin-s", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=500)
    options = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(running())
        print(server.durability())
        waiting = Table(stack, server, options.batch)
        waiting.fill(100_000)
        print(f"first claim of 100,000 queued: {waiting.first_claim_s():.2f} s")
        empty, full = Table(stack, server, options.batch), Table(stack, server, options.batch)
        full.fill(options.rows)
        pin = stack.enter_context(psycopg.connect(full.url))
        pin.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pin.execute("SELECT FROM pysched.nodes")
        until = time.monotonic() + options.pin_s
        laps: list[tuple[tuple[float, float], tuple[float, float]]] = []  # of the empty table, of the full one
        while time.monotonic() < until and (len(laps) + 1) * TURN <= options.rows:
            empty.top_up()
            order = (empty, full) if len(laps) % 2 else (full, empty)
            taken = {table: table.turn() for table in order}
            laps.append((taken[empty], taken[full]))
        pin.rollback()
    print(
        f"{2 * options.rows} rows, a snapshot held for {options.pin_s:g} s, {len(laps) * TURN} tasks claimed meanwhile:"
    )
    for which, what in enumerate(("claims", "claims and finishes")):
        ratios = [before[which] / after[which] for before, after in laps]
        last = Ratio.of(ratios[-(len(ratios) + 3) // 4 :])
        print(f"{what}, as fast as in an empty table: {Ratio.of(ratios)}, in the last quarter {last}")
    return 0


def _succeeded(claim: Claim) -> Outcome:
    now = datetime.now(timezone.utc)
    end = Exit(pid=1, started_at=now, finished_at=now, exit_code=0)
    return policy.verdict(claim.key, end, failures=claim.failures, rule=_RULE, jitter=0.0)


if __name__ == "__main__":
    sys.exit(main())
