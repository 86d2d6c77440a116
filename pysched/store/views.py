"""What users and pages see of tasks: dictionaries of plain JSON values, times as RFC 3339 text in UTC."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from pysched.errors import NotFoundError
from pysched.model import Priority, State, TaskType
from pysched.store import sql
from pysched.store.database import Conn, Database

_QUERIES = sql.load("view")

Row = dict[str, Any]


def get(database: Database, task_id: str) -> Row:
    """See `Store.get`."""

    def work(conn: Conn) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        ended = conn.execute(_QUERIES.attempts, {"id": task_id})
        task = conn.execute(_QUERIES.task, {"id": task_id})
        return ended.fetchall(), task.fetchall()

    ended, found = database.read(work)
    for row in found:
        *columns, spec, holder, pid, attempt_started_at = row
        attempts = [_attempt(attempt) for attempt in ended]
        if attempt_started_at is not None:
            attempts.append(_running(columns[11], holder, pid, attempt_started_at))
        return {**_task(columns), "attempts": attempts, "task": json.loads(spec)}
    raise NotFoundError(f"there is no task {task_id}")


def page(
    database: Database,
    *,
    state: State | None,
    priority: Priority | None,
    kind: TaskType | None,
    limit: int,
    before: int | None,
) -> list[Row]:
    """See `Store.list`."""
    parameters = {
        "state": None if state is None else state.value,
        "priority": None if priority is None else int(priority),
        "type": None if kind is None else kind.value,
        "limit": limit,
        "before": before,
    }
    return [_task(row) for row in database.execute(_QUERIES.page, parameters)]


def stats(database: Database) -> Row:
    """See `Store.stats`."""

    def work(conn: Conn) -> tuple[Any, Any, Any]:
        queries = (_QUERIES.live, _QUERIES.tallies, _QUERIES.paused)
        live, tallies, paused = [conn.execute(query) for query in queries]
        return live.fetchall(), tallies.fetchall(), paused.fetchall()

    live, tallies, ((paused,),) = database.read(work)
    counts = {state.value: {priority.name: 0 for priority in Priority} for state in State}
    totals = {"submitted": 0, "retried": 0}
    for state, priority, count in live:
        counts[state][Priority(priority).name] += count
    for kind, priority, total in tallies:
        if kind in totals:
            totals[kind] += total
        else:
            counts[kind][Priority(priority).name] = total
    states = {state: sum(by_priority.values()) for state, by_priority in counts.items()}
    return {
        "states": states,
        "priorities": counts,
        "queued": states[State.QUEUED],
        "running": states[State.RUNNING],
        **totals,
        "paused": paused,
    }


def depths(database: Database) -> dict[Priority, int]:
    """See `Store.depths`."""
    counts = dict.fromkeys(Priority, 0)
    for priority, count in database.execute(_QUERIES.depths):
        counts[Priority(priority)] += count
    return counts


def rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def _task(row: Sequence[Any]) -> Row:
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
