"""How tasks end and begin again: finish, cancel, retry, and what follows for the tasks that depend on them.

Locks are taken upstream first (a task before what depends on it) and, among equals, in the order of ids, so
transactions that meet wait for each other instead of deadlocking; the rare deadlock that is left is retried.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from pysched.errors import InputError, NotFoundError
from pysched.model import STATES, TERMINAL, AttemptKey, Outcome, Priority, Record, State
from pysched.store import arrays, sql
from pysched.store.database import Conn, Database

_QUERIES = sql.load("finish")
_NOBODY = uuid.UUID(int=0)  # the source of tallies that no home writes
_RESULT_BYTES = 64 * 1024
_REASON_CHARS = 1_000

_PRIORITY_NAMES = [priority.name for priority in Priority]

_Tally = Counter[tuple[str, int]]  # (kind, priority) → by how much it changes


def finish(
    database: Database, outcomes: Sequence[Outcome], *, home: uuid.UUID | None
) -> tuple[list[Record], list[AttemptKey]]:
    """See `Store.finish`."""
    by_key: dict[AttemptKey, Outcome] = {}
    for outcome in outcomes:
        by_key.setdefault(outcome.key, outcome)
    columns = {**_columns(sorted(by_key.values(), key=lambda outcome: outcome.key.id)), "home": home}

    def work(conn: Conn) -> tuple[list[Record], list[AttemptKey]]:
        rows = conn.execute(_QUERIES.finish, columns).fetchall()
        owned: set[AttemptKey] = set()
        records: list[Record] = []
        tally: _Tally = Counter()
        for task_id, attempt, token, *rest, batch, _ in rows:
            key = AttemptKey(task_id, attempt, token)
            owned.add(key)
            priority, state = rest[2], STATES[rest[3]]
            if state in TERMINAL:
                records.append(record_of((task_id, *rest), batch))
                tally[state.value, priority] += 1
            elif by_key[key].next_state is State.SCHEDULED:
                tally["retried", priority] += 1
        settle(conn, [(record.id, STATES[record.status]) for record in records], tally)
        count(conn, home, tally)
        return _answer(conn, by_key, owned, records)

    return database.transaction(work) if by_key else ([], [])


def _answer(
    conn: Conn, by_key: Mapping[AttemptKey, Outcome], owned: Set[AttemptKey], records: list[Record]
) -> tuple[list[Record], list[AttemptKey]]:
    """What the caller learns: also of ends that it wrote before, in a call whose answer was lost.

    An attempt that never had a process leaves no row to know it by, and nothing that could be lost either.
    """
    others = {key: outcome for key, outcome in by_key.items() if key not in owned and not outcome.void}
    if not others:
        return records, []
    rows = conn.execute(_QUERIES.written_before, _columns(list(others.values()))).fetchall()
    for task_id, *columns, attempt, token in rows:
        del others[AttemptKey(task_id, attempt, token)]
        record = record_of((task_id, *columns))
        if State(record.status).terminal and record.attempts == attempt:
            records.append(record)
    return records, list(others)


def cancel(database: Database, task_id: str) -> State:
    """See `Store.cancel`."""

    def work(conn: Conn) -> State:
        place, state, priority = _lock(conn, task_id)
        if place == "claimed":
            conn.execute(_QUERIES.request_cancel, {"id": task_id})
        elif place != "ended":
            conn.execute(_QUERIES.cancel_waiting, {"id": task_id})
            tally: _Tally = Counter({(State.CANCELLED.value, priority): 1})
            settle(conn, [(task_id, State.CANCELLED)], tally)
            count(conn, None, tally)
            return State.CANCELLED
        return state

    return database.transaction(work)


def retry(database: Database, task_id: str) -> State:
    """See `Store.retry`."""

    def work(conn: Conn) -> State:
        needs = [(need, State(state)) for need, state in conn.execute(_QUERIES.needs_of, {"id": task_id})]
        _, state, priority = _lock(conn, task_id)
        if state not in {State.FAILED, State.CANCELLED}:
            raise InputError(f"task {task_id} is {state.value}; only a failed or cancelled one can be run again")
        for (need,) in conn.execute(_QUERIES.removed_needs, {"id": task_id}).fetchall():
            raise InputError(
                f"task {task_id} needs {need}, which did not succeed and has been removed since; submit both anew"
            )
        for need, need_state in needs:
            if need_state in {State.FAILED, State.CANCELLED}:
                raise InputError(f"task {task_id} needs {need}, which is {need_state.value}; run that again first")
        waiting = sum(need_state is not State.SUCCEEDED for _, need_state in needs)
        passed_over = any(need_state is State.QUEUED for _, need_state in needs)
        parameters = {"id": task_id, "waiting": waiting, "passed_over": passed_over}
        ((reopened, _),) = conn.execute(_QUERIES.reopen, parameters).fetchall()
        count(conn, None, Counter({(state.value, priority): -1}))
        return State(reopened)

    return database.transaction(work)


def record(database: Database, task_id: str) -> Record:
    """See `Store.record`."""
    for row in database.execute(_QUERIES.record, {"id": task_id}):
        if not State(row[4]).terminal:
            raise InputError(f"task {task_id} is {row[4]}; it has no record before it has ended")
        return record_of(row)
    raise NotFoundError(f"there is no task {task_id}")


def undelivered(database: Database, home: uuid.UUID, limit: int) -> list[Record]:
    """See `Store.undelivered`."""
    rows = database.execute(_QUERIES.undelivered, {"home": home, "limit": limit})
    return [record_of(row, batch) for *row, batch in rows]


def delivered(database: Database, records: Sequence[Record]) -> None:
    """See `Store.delivered`."""
    single = [each for each in records if each.batch is None]
    if single:
        columns = {
            "ids": arrays.texts([each.id for each in single]),
            "ends": arrays.times([each.finished_at for each in single]),
        }
        database.execute(_QUERIES.delivered, columns)
    written: dict[int, set[str]] = {}
    for each in records:
        if each.batch is not None:
            written.setdefault(each.batch, set()).add(each.id)
    if written:
        columns = {"batches": arrays.numbers(written), "counts": arrays.numbers(map(len, written.values()))}
        for (batch,) in database.execute(_QUERIES.delivered_batches, columns):
            del written[batch]
    if written:
        numbers, ids = zip(*((batch, each) for batch, those in written.items() for each in those), strict=True)
        columns = {"batches": arrays.numbers(numbers), "ids": arrays.texts(ids)}
        database.execute(_QUERIES.delivered_in_part, columns)


def delivered_batches(database: Database, written: Sequence[tuple[int, int]]) -> None:
    """See `Store.delivered_batches`."""
    batches, counts = zip(*written, strict=True)
    columns = {"batches": arrays.numbers(batches), "counts": arrays.numbers(counts)}
    database.execute(_QUERIES.delivered_batches, columns)


def record_of(row: Sequence[Any], batch: int | None = None) -> Record:
    """A `Record` from the columns of the query `record`."""
    (
        task_id, name, kind, priority, state, reason, exit_code, signal, attempts, node, submitted_at, started_at,
        finished_at, run_ms, result, stdout, stderr,
    ) = row  # fmt: skip
    return Record(
        id=task_id,
        name=name,
        type=kind,
        priority=_PRIORITY_NAMES[priority],
        status=state,
        reason=reason,
        exit_code=exit_code,
        signal=signal,
        attempts=attempts,
        node=node,
        submitted_at=submitted_at,
        started_at=started_at,
        finished_at=finished_at,
        # Two clocks: the store's and the node's.  A wait is never negative because they differ.
        wait_ms=None if started_at is None else max(0, round((started_at - submitted_at).total_seconds() * 1000)),
        run_ms=run_ms,
        result=None if result is None else json.loads(result),
        stdout=stdout,
        stderr=stderr,
        batch=batch,
    )


def _lock(conn: Conn, task_id: str) -> tuple[str, State, int]:
    for place, state, priority in conn.execute(_QUERIES.lock_task, {"id": task_id}).fetchall():
        return place, State(state), priority
    raise NotFoundError(f"there is no task {task_id}")


def settle(conn: Conn, ended: Iterable[tuple[str, State]], tally: _Tally) -> None:
    """Free or cancel what waited for tasks that this transaction has ended.

    Must be statements after the one that ended them: only their newer snapshot shows the edges of a task that
    was being accepted meanwhile and held us up by its share lock on the needed row (see `accepting`).  For the
    same reason cancelling repeats until it finds nothing: each round may have waited for such a task too.
    """
    succeeded: list[str] = []
    lost: list[str] = []
    for task_id, state in ended:
        (succeeded if state is State.SUCCEEDED else lost).append(task_id)
    settle_arrays(conn, arrays.texts(succeeded) if succeeded else None, arrays.texts(lost) if lost else None, tally)


def settle_arrays(conn: Conn, succeeded: str | bytes | None, lost: str | bytes | None, tally: _Tally) -> None:
    """The same, of ids that are an array already; None: of no task."""
    if succeeded is not None:
        conn.execute(_QUERIES.unblock, {"ids": succeeded})
    while lost is not None:
        rows = conn.execute(_QUERIES.cancel_dependents, {"ids": lost}).fetchall()
        lost = arrays.texts([task_id for task_id, _ in rows]) if rows else None
        tally.update((State.CANCELLED.value, priority) for _, priority in rows)


def count(conn: Conn, source: uuid.UUID | None, tally: _Tally) -> None:
    """Last in a transaction, since others with the same source wait for it."""
    if tally:
        kinds, priorities = zip(*tally, strict=True)
        columns = {"kinds": list(kinds), "priorities": list(priorities), "counts": list(tally.values())}
        conn.execute(_QUERIES.tally, {**columns, "source": source or _NOBODY})


def _columns(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The arrays that the query takes.  No value in them can make the statement fail for all the others."""
    ends = [outcome.exit for outcome in outcomes]
    return {
        "ids": arrays.texts([outcome.key.id for outcome in outcomes]),
        "attempts": arrays.numbers([outcome.key.attempt for outcome in outcomes]),
        "tokens": arrays.numbers([outcome.key.token for outcome in outcomes]),
        "voids": arrays.numbers([outcome.void for outcome in outcomes]),
        "attempt_states": arrays.texts([outcome.attempt_state.value for outcome in outcomes]),
        "next_states": arrays.texts([outcome.next_state.value for outcome in outcomes]),
        "reasons": arrays.texts([_text(outcome.reason, _REASON_CHARS) for outcome in outcomes]),
        "delays": arrays.numbers([float(outcome.delay_s) for outcome in outcomes]),
        "failed": arrays.numbers([outcome.counts and outcome.attempt_state is State.FAILED for outcome in outcomes]),
        "pids": arrays.numbers([end.pid for end in ends]),
        "starts": arrays.times([end.started_at for end in ends]),
        "ends": arrays.times([end.finished_at for end in ends]),
        "exit_codes": arrays.numbers([end.exit_code for end in ends]),
        "signals": arrays.texts([end.signal for end in ends]),
        "cpu_ms": arrays.numbers([end.cpu_ms for end in ends]),
        "max_rss_kb": arrays.numbers([end.max_rss_kb for end in ends]),
        "stdouts": arrays.texts([_text(end.stdout) for end in ends]),
        "stderrs": arrays.texts([_text(end.stderr) for end in ends]),
        "results": arrays.texts([_json(end.result) for end in ends]),
        "crashed": arrays.numbers([outcome.crashed for outcome in outcomes]),
        "holders": arrays.texts([None if outcome.holder is None else str(outcome.holder) for outcome in outcomes]),
    }


def _text(value: str | None, limit: int | None = None) -> str | None:
    """Text that PostgreSQL takes: no NUL, no lone surrogate (as in a file name that is not UTF-8)."""
    if value is None:
        return None
    if value.isascii() and "\0" not in value:
        return value[:limit]
    return value[:limit].replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _json(text: str | None) -> str | None:
    """A job's result as JSON in ASCII, finite and within its limit; None for anything else."""
    if text is None or len(text) > _RESULT_BYTES:
        return None
    try:
        return json.dumps(json.loads(text), allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
