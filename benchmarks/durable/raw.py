"""The life cycle of a task as bare SQL: the store's own statements and transactions, and of Python only what joins
one answer into the next question.  What stands above this is the store's cost in Python."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg

from pysched.store import sql
from pysched.store.database import _SESSION
from pysched.task import Task

_ACCEPT, _CLAIM, _FINISH, _PLAIN = (sql.load(name) for name in ("accept", "claim", "finish", "plain"))
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


def finish(conn: Conn, node: uuid.UUID, home: uuid.UUID, claims: list[tuple[Any, ...]]) -> None:
    count = len(claims)
    ids = _array(row[0] for row in claims)
    numbers, times, nothing = _same("0", count), _same(_NOW, count), _same("NULL", count)
    columns = {
        "ids": ids,
        "tokens": _array(str(row[2]) for row in claims),
        "pids": _same("1", count),
        "starts": times,
        "ends": times,
        **dict.fromkeys(("runs_ms", "exit_codes", "cpu_ms", "max_rss_kb"), numbers),
        **dict.fromkeys(("stdouts", "stderrs", "results"), nothing),
        "count": count,
        "node": node,
        "home": home,
    }
    with conn.pipeline(), conn.transaction():
        conn.execute(_PLAIN.finish, columns).fetchall()
        conn.execute(_FINISH.unblock, {"ids": ids})
        tally = {"kinds": "{succeeded}", "priorities": "{1}", "counts": f"{{{count}}}", "source": home}
        conn.execute(_FINISH.tally, tally)


def _same(value: str, count: int) -> str:
    return "{" + ",".join([value] * count) + "}"


def _array(values: Any) -> str:
    return "{" + ",".join(values) + "}"
