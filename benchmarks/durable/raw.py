"""The life cycle of a task as bare SQL: the store's own statements and transactions, and of Python only what joins
one answer into the next question.  What stands above this is the store's cost in Python."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg

from pysched.store import sql
from pysched.store.database import _SESSION
from pysched.task import Task

_ACCEPT, _CLAIM, _FINISH = sql.load("accept"), sql.load("claim"), sql.load("finish")
_NOW = "2026-01-01T00:00:00+00:00"
_SPEC = Task(command=["true"]).spec().replace("\\", "\\\\").replace('"', '\\"')

Conn = psycopg.Connection[Any]


def connect(url: str) -> Conn:
    conn = psycopg.connect(url, autocommit=True, prepare_threshold=0)
    conn.execute(_SESSION)
    return conn


def new_tasks(start: int, count: int) -> dict[str, Any]:
    ids = _array(f"noop-{start + number}" for number in range(count))
    return {
        "ids": ids,
        "names": ids,
        "types": _same("system", count),
        "priorities": _same("1", count),
        "ranks": _same("0", count),
        "specs": _same(f'"{_SPEC}"', count),
        "delays": _same("0", count),
        "states": _same("queued", count),
        "waiting": _same("0", count),
        **dict.fromkeys(("cpus", "mem", "gpus"), _same("NULL", count)),
        "source": uuid.UUID(int=1),
    }


def accept(conn: Conn, columns: dict[str, Any]) -> None:
    with conn.pipeline(), conn.transaction():
        conn.execute(_ACCEPT.notify, {"kinds": "{ready}"})
        conn.execute(_ACCEPT.insert, columns).fetchall()


def claim(conn: Conn, node: uuid.UUID, limit: int) -> list[tuple[Any, ...]]:
    columns = {
        "node": node, "lowest": 2, "limit": limit, "overdue_priorities": "{}", "overdue_after": "{}",
        "overdue_limits": "{}", "schema": 1_000,
        **dict.fromkeys(("cpus", "mem", "gpus", "has_cpus", "has_mem", "has_gpus"), 0),
    }  # fmt: skip
    return conn.execute(_CLAIM.claim, columns).fetchall()


def finish(conn: Conn, home: uuid.UUID, claims: list[tuple[Any, ...]]) -> None:
    count = len(claims)
    ids = _array(row[0] for row in claims)
    columns = {
        "ids": ids,
        "attempts": _array(str(row[1]) for row in claims),
        "tokens": _array(str(row[2]) for row in claims),
        "voids": _same("f", count),
        "attempt_states": _same("succeeded", count),
        "next_states": _same("succeeded", count),
        "reasons": _same("NULL", count),
        "delays": _same("0", count),
        "failed": _same("f", count),
        "pids": _same("1", count),
        "starts": _same(_NOW, count),
        "ends": _same(_NOW, count),
        "exit_codes": _same("0", count),
        "signals": _same("NULL", count),
        "cpu_ms": _same("0", count),
        "max_rss_kb": _same("0", count),
        "stdouts": _same("NULL", count),
        "stderrs": _same("NULL", count),
        "results": _same("NULL", count),
        "crashed": _same("f", count),
        "holders": _same("NULL", count),
        "home": home,
    }
    with conn.pipeline(), conn.transaction():
        conn.execute(_FINISH.finish, columns).fetchall()
        conn.execute(_FINISH.unblock, {"ids": ids})
        tally = {"kinds": "{succeeded}", "priorities": "{1}", "counts": f"{{{count}}}", "source": home}
        conn.execute(_FINISH.tally, tally)


def _same(value: str, count: int) -> str:
    return "{" + ",".join([value] * count) + "}"


def _array(values: Any) -> str:
    return "{" + ",".join(values) + "}"
