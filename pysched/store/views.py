"""What users and pages see of tasks: dictionaries of plain JSON values, times as RFC 3339 text in UTC."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from pysched.errors import NotFoundError
from pysched.model import Priority, State
from pysched.store import sql
from pysched.store.database import Conn, Database

_QUERIES = sql.load("view")
_PLACES = ("queued", "scheduled", "blocked")
_COUNTED = 20_000  # of each place: a matter of milliseconds

Row = dict[str, Any]


def get(database: Database, task_id: str) -> Row:
    """See `Store.get`."""

    def work(conn: Conn) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        ended = conn.execute(_QUERIES.attempts, {"id": task_id})
        found = conn.execute(_QUERIES.task, {"id": task_id})
        return ended.fetchall(), found.fetchall()

    ended, found = database.read(work)
    for row in found:
        *columns, spec, holder, pid, attempt_started_at = row
        attempts = [_attempt(attempt) for attempt in ended]
        if attempt_started_at is not None:
            attempts.append(_running(columns[11], holder, pid, attempt_started_at))
        return {**task(columns), "attempts": attempts, "task": json.loads(spec)}
    raise NotFoundError(f"there is no task {task_id}")


def stats(database: Database) -> Row:
    """See `Store.stats`."""

    def work(conn: Conn) -> tuple[_Live, Any, Any]:
        tallies, paused = conn.execute(_QUERIES.tallies), conn.execute(_QUERIES.paused)
        return _live(conn), tallies.fetchall(), paused.fetchall()

    live, tallies, ((paused,),) = database.read(work)
    counts = {state.value: {priority.name: 0 for priority in Priority} for state in State}
    totals = {"submitted": 0, "retried": 0}
    for state, by_priority in live.items():
        for priority in Priority:
            counts[state.split(" ")[-1]][priority.name] += by_priority[priority]
    for kind, priority, total in tallies:
        if kind in totals:
            totals[kind] += total
        else:
            counts[kind][Priority(priority).name] = total
    states = {state: sum(by_name.values()) for state, by_name in counts.items()}
    return {
        "states": states,
        "priorities": counts,
        "queued": states[State.QUEUED],
        "running": states[State.RUNNING],
        **totals,
        "paused": paused,
    }


def depths(database: Database) -> tuple[dict[Priority, int], int]:
    """See `Store.depths`."""
    found: dict[str, Counter[int]] = {"queued": Counter(), "claimed": Counter(), "submitted": Counter()}
    for place, priority, number in database.execute(_QUERIES.depths_and_total, {"limit": _COUNTED}):
        found[place][priority] += number
    queued, claimed = found["queued"], found["claimed"]
    if sum(queued.values()) >= _COUNTED:
        live = database.read(_live)
        queued, claimed = live["queued"], live["claimed queued"]
    return {priority: queued[priority] + claimed[priority] for priority in Priority}, found["submitted"].total()


_Live = dict[
    str, Counter[int]
]  # queued (in the store), scheduled, blocked, claimed queued, claimed running → by priority


def _live(conn: Conn) -> _Live:
    """Counts of tasks that have not ended.  Where many wait, in one place mostly, nobody counts them: they are what the
    totals leave when all the others are counted."""
    counts = _by_place(conn.execute(_QUERIES.live_up_to, {"limit": _COUNTED}))
    many = [place for place in _PLACES if sum(counts[place].values()) >= _COUNTED]
    if len(many) > 1:
        return _by_place(conn.execute(_QUERIES.live))
    for place in many:
        others = [other for other in counts if other != place]
        for priority, total in conn.execute(_QUERIES.live_in_all):
            counts[place][priority] = max(0, total - sum(counts[other][priority] for other in others))
    return counts


def _by_place(rows: Iterable[tuple[Any, ...]]) -> _Live:
    counts: _Live = {place: Counter() for place in (*_PLACES, "claimed queued", "claimed running")}
    for place, priority, count in rows:
        counts[place][priority] += count
    return counts


def rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def task(row: Sequence[Any]) -> Row:
    """From the columns of the query `task`, without its last four."""
    (
        task_id, sequence, name, kind, priority, rank, state, reason, cancel_requested, waiting_for, due_at, attempts,
        failures, node, submitted_at, started_at, finished_at, exit_code, signal, run_ms, result, stdout, stderr,
    ) = row  # fmt: skip
    return {
        "id": task_id,
        "sequence": sequence,
        "name": name,
        "type": kind,
        "priority": Priority(priority).name,
        "rank": rank,
        "status": state,
        "reason": reason,
        "cancel_requested": cancel_requested,
        "waiting_for": waiting_for,
        "due_at": rfc3339(due_at),
        "attempts": attempts,
        "failures": failures,
        "node": None if node is None else str(node),
        "submitted_at": rfc3339(submitted_at),
        "started_at": rfc3339(started_at),
        "finished_at": rfc3339(finished_at),
        "wait_ms": None if started_at is None else max(0, round((started_at - submitted_at).total_seconds() * 1000)),
        "run_ms": run_ms,
        "exit_code": exit_code,
        "signal": signal,
        "result": None if result is None else json.loads(result),
        "stdout": stdout,
        "stderr": stderr,
    }


def _attempt(row: Sequence[Any]) -> Row:
    number, node, state, reason, pid, started_at, finished_at, exit_code, signal, cpu_ms, rss_kb, stdout, stderr = row
    return {
        "attempt": number,
        "node": str(node),
        "status": state,
        "reason": reason,
        "pid": pid,
        "started_at": rfc3339(started_at),
        "finished_at": rfc3339(finished_at),
        "exit_code": exit_code,
        "signal": signal,
        "cpu_ms": cpu_ms,
        "max_rss_kb": rss_kb,
        "stdout": stdout,
        "stderr": stderr,
    }


def _running(number: int, node: object, pid: int | None, started_at: datetime) -> Row:
    blank = dict.fromkeys(("reason", "finished_at", "exit_code", "signal", "cpu_ms", "max_rss_kb", "stdout", "stderr"))
    known = {"attempt": number, "node": str(node), "status": State.RUNNING.value, "pid": pid}
    return {**blank, **known, "started_at": rfc3339(started_at)}
