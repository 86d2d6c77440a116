"""What do large graphs cost the store?  A chain, a fan-out and a fan-in of COUNT tasks, a task each.

    python -m benchmarks.durable.dependencies [--count 100000]

Each is accepted in one atomic batch.  The chain ends by a failure at its head, which cancels all the rest in one
transaction.  The fan-out is freed by the success of one task, and its tasks are what the fan-in waits for, 1,000 to a
join (the limit of `after`) and all joins to one; two nodes finish them side by side.  Exit 0 only if every task ended
as it should.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timezone

from benchmarks.durable.server import running
from pysched import policy
from pysched.model import Claim, Exit, NodeInfo, Outcome, Priority
from pysched.store.store import Store
from pysched.task import Task

BATCH = 1_000
JOIN = 1_000
_SOURCE = uuid.uuid4()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    count = parser.parse_args().count
    with running() as server:
        print(server.durability())
        with server.database() as url, Store(url) as store:
            store.migrate()
            accepted_s = _accept(store, [_task(f"c{n}", [f"c{n - 1}"] if n else []) for n in range(count)])
            node = _register(store)
            ended_s = _timed(lambda: store.finish([_ended(claim, 1) for claim in _claim(store, node)], home=node))
            accepted_us, ended_us = accepted_s * 1e6 / count, ended_s * 1e6 / count
            print(f"chain of {count}: accepted {accepted_us:.0f} µs, cancelled {ended_us:.0f} µs")
            bad = store.stats()["states"]["cancelled"] != count - 1
        with server.database() as url, Store(url) as store:
            store.migrate()
            joins = [[f"t{n}" for n in range(first, min(first + JOIN, count))] for first in range(0, count, JOIN)]
            tasks = [_task("root", []), *(_task(f"t{n}", ["root"]) for n in range(count))]
            tasks += [_task(f"join{n}", names) for n, names in enumerate(joins)]
            tasks.append(_task("end", [f"join{n}" for n in range(len(joins))]))
            accepted_s = _accept(store, tasks)
            node = _register(store)
            freed_s = _timed(lambda: store.finish([_ended(claim, 0) for claim in _claim(store, node)], home=node))
            joined_s = _timed(lambda: _run_all(store, len(tasks) - 1))
            print(
                f"fan-out and fan-in of {count}: accepted {accepted_s / count * 1e6:.0f} µs,"
                f" freed {freed_s / count * 1e6:.0f} µs, run by two nodes {joined_s / count * 1e6:.0f} µs"
            )
            bad |= store.stats()["states"]["succeeded"] != len(tasks)
    return int(bad)


def _task(name: str, after: list[str]) -> Task:
    return Task(id=name, command=["true"], after=after, max_retries=0)


def _accept(store: Store, tasks: list[Task]) -> float:
    return _timed(lambda: store.accept(tasks, source=_SOURCE, atomic=True))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _register(store: Store) -> uuid.UUID:
    incarnation = uuid.uuid4()
    info = NodeInfo(incarnation=incarnation, home=incarnation, host="b", pid=1, workers=1, lanes=1, version="0")
    store.register(info, 7200.0)
    return incarnation


def _claim(store: Store, node: uuid.UUID) -> list[Claim]:
    return store.claim(node, lowest=Priority.LOW, limit=BATCH)


def _run_all(store: Store, count: int) -> None:
    left = count
    guard = threading.Lock()

    def run() -> None:
        nonlocal left
        node = _register(store)
        while left > 0:
            claims = _claim(store, node)
            if claims:
                store.finish([_ended(claim, 0) for claim in claims], home=node)
                with guard:
                    left -= len(claims)
            else:
                time.sleep(0.002)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _ended(claim: Claim, code: int) -> Outcome:
    now = datetime.now(timezone.utc)
    end = Exit(pid=1, started_at=now, finished_at=now, exit_code=code)
    rule = policy.RetryRule(max_retries=0, retry_delay_s=0.0)
    return policy.verdict(claim.key, end, failures=claim.failures, rule=rule, jitter=0.0)


if __name__ == "__main__":
    sys.exit(main())
