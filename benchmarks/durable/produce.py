"""Submits COUNT no-op jobs in batches of 1,000 to what URL holds, at the word: prints `ready`, waits for a line.

python -m benchmarks.durable.produce pysched|raw|graphile URL COUNT
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable

import psycopg

from benchmarks.durable import raw
from pysched.store.store import Store
from pysched.task import Task

BATCH = 1_000
_ADD_JOBS = b"""
    SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(
        SELECT json_populate_record(NULL::graphile_worker.job_spec, value) FROM json_array_elements(%s::json)))
"""


def main() -> None:
    kind, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    {"pysched": _pysched, "raw": _raw, "graphile": _graphile}[kind](url, range(0, count, BATCH))


def _at_the_word(batches: list[Callable[[], object]]) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    for batch in batches:
        batch()


def _pysched(url: str, starts: range) -> None:
    source = uuid.uuid4()
    with Store(url) as store:
        made = [[Task(id=f"noop-{start + n}", command=["true"]) for n in range(BATCH)] for start in starts]
        _at_the_word([lambda tasks=tasks: store.accept(tasks, source=source, atomic=True) for tasks in made])  # type: ignore[misc]


def _raw(url: str, starts: range) -> None:
    with raw.connect(url) as conn:
        made = [raw.new_tasks(start, BATCH) for start in starts]
        _at_the_word([lambda columns=columns: raw.accept(conn, columns) for columns in made])  # type: ignore[misc]


def _graphile(url: str, starts: range) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        made = [
            json.dumps([{"identifier": "noop", "payload": {"id": start + n}} for n in range(BATCH)]) for start in starts
        ]
        _at_the_word([lambda jobs=jobs: conn.execute(_ADD_JOBS, (jobs,)) for jobs in made])  # type: ignore[misc]


if __name__ == "__main__":
    main()
