"""Accepting tasks: what becomes of each, decided without the database, and the transaction around that.

Two ways lead in.  Without any `after` in the batch, one statement inserts what is new, and the rest turns out to
exist already; a large batch is looked up first and then copied in.  With dependencies, needed tasks are locked and
read first, because their states decide.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from pysched.draft import Entry
from pysched.errors import ConflictError, Problem, TaskError
from pysched.model import Acceptance, State
from pysched.store import arrays, loading, sql
from pysched.store.database import Conn, Database, Raced
from pysched.task import SpecWriter, Task, is_same

Verdict = Acceptance | ConflictError | TaskError

_QUERIES = sql.load("accept")
_CHUNK = 5_000  # rows of one statement: bounds its memory, here and on the server
_UNFINISHED = frozenset({State.BLOCKED, State.SCHEDULED, State.QUEUED, State.RUNNING})


@dataclass(frozen=True, slots=True)
class Stored:
    """A task that was there before."""

    spec: str
    state: State


@dataclass(slots=True)
class New:
    """A task of the batch that the store does not have yet."""

    id: str
    task: Entry
    spec: str
    needs: frozenset[str]
    state: State = State.QUEUED
    waiting_for: int = 0


@dataclass(slots=True)
class Plan:
    """The verdict on each id of a batch, and what to insert."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    new: list[New] = field(default_factory=list)  # accepted ones, in arrival order


class _Refused(Exception):
    """Rolls back an atomic batch with a refused item."""


def accept(database: Database, tasks: Sequence[Entry], *, source: uuid.UUID, atomic: bool) -> list[Verdict]:
    """See `Store.accept`."""
    batch = _Batch(tasks)
    verdicts: dict[str, Verdict] = {}

    def work(conn: Conn) -> None:
        verdicts.clear()
        verdicts.update(_with_needs(conn, batch, source) if batch.needs else _without_needs(conn, batch, source))
        if atomic and any(not isinstance(verdict, Acceptance) for verdict in batch.answers(verdicts)):
            raise _Refused

    if tasks:
        with contextlib.suppress(_Refused):
            database.transaction(work, pipelined=not batch.large)
    return batch.answers(verdicts)


class _Batch:
    """The tasks as given, each id once: of several with one id the first counts, the others are held against it."""

    def __init__(self, tasks: Sequence[Entry]) -> None:
        self.first: dict[str, New] = {}
        self._given: list[tuple[str, str]] = []
        writer = SpecWriter()
        for task in tasks:
            if task.id is None:
                raise ValueError("a task must have its id before it is accepted")
            spec = writer.of(task) if isinstance(task, Task) else task.spec()
            self._given.append((task.id, spec))
            if task.id not in self.first:
                self.first[task.id] = New(task.id, task, spec, frozenset(task.after))
        self.needs = frozenset(need for item in self.first.values() for need in item.needs)

    @property
    def large(self) -> bool:
        """Whether COPY pays."""
        return not self.needs and len(self.first) >= loading.LEAST

    def answers(self, verdicts: Mapping[str, Verdict]) -> list[Verdict]:
        """One verdict a task, in the order given."""
        seen: set[str] = set()
        answers: list[Verdict] = []
        for task_id, spec in self._given:
            verdict = verdicts[task_id]
            if task_id in seen and isinstance(verdict, Acceptance):
                same = is_same(spec, self.first[task_id].spec)
                verdict = Acceptance(id=task_id, state=verdict.state, created=False) if same else ConflictError(task_id)
            elif task_id in seen and not is_same(spec, self.first[task_id].spec):
                verdict = ConflictError(task_id)
            seen.add(task_id)
            answers.append(verdict)
        return answers


def _without_needs(conn: Conn, batch: _Batch, source: uuid.UUID) -> dict[str, Verdict]:
    items = list(batch.first.values())
    for item in items:
        item.state = State.SCHEDULED if item.task.delay_s > 0 else State.QUEUED
    _notify(conn, {item.state for item in items})
    if batch.large:
        existing = _find(conn, [item.id for item in items])
        new = [item for item in items if item.id not in existing]
        loading.load(conn, new, source)
        created = {item.id for item in new}
    else:
        created = _insert(conn, items, source)
        existing = _find(conn, [item.id for item in items if item.id not in created])
    verdicts: dict[str, Verdict] = {}
    for item in items:
        if item.id in created:
            verdicts[item.id] = Acceptance(id=item.id, state=item.state, created=True)
        elif item.id in existing:
            verdicts[item.id] = _same_or_conflict(item, existing[item.id])
        else:
            raise Raced  # it was there, and has been deleted since
    return verdicts


def _with_needs(conn: Conn, batch: _Batch, source: uuid.UUID) -> dict[str, Verdict]:
    """With dependencies, against a concurrent `finish` of a needed task.

    No wake-up is lost, because the two meet on the needed task's row: either our share lock comes first, then
    the finish waits for our commit, and its look for dependents, a later statement with a newer snapshot, sees
    our edges; or the finish comes first, then our lock waits for its commit and reads the terminal state.
    A needed task that is in this batch is nobody else's to finish before our commit, unless another
    transaction has inserted the same id meanwhile: then ours is not created, and we begin again.
    """
    needed = {
        task_id: State(state)
        for task_id, state in conn.execute(_QUERIES.lock_needed, {"ids": arrays.texts(sorted(batch.needs))})
    }
    plan = judge(batch.first, _find(conn, list(batch.first)), needed)
    created = _insert(conn, plan.new, source)
    if len(created) != len(plan.new):
        raise Raced
    edges = [(item.id, need) for item in plan.new for need in item.needs]
    for chunk in _chunks(edges):
        tasks, needs = zip(*chunk, strict=True)
        conn.execute(_QUERIES.connect, {"tasks": arrays.texts(tasks), "needs": arrays.texts(needs)})
    # Claims skip rows that we lock, so a queued task that we locked may have been passed over: hint again.
    _notify(conn, {*needed.values(), *(item.state for item in plan.new)})
    return plan.verdicts


def judge(items: Mapping[str, New], stored: Mapping[str, Stored], needed: Mapping[str, State]) -> Plan:
    """What becomes of each of `items`, given the tasks the store has of them and of what they need.

    Sets `state` and `waiting_for` of those that are accepted.
    """
    plan = Plan()
    new: dict[str, New] = {}
    for item in items.values():
        if item.id in stored:
            plan.verdicts[item.id] = _same_or_conflict(item, stored[item.id])
        else:
            new[item.id] = item
    for item in _in_order_of_needs(new):
        refusal = _refusal(item, plan.verdicts, needed)
        if refusal is None:
            _place(item, new, needed)
            plan.verdicts[item.id] = Acceptance(id=item.id, state=item.state, created=True)
        else:
            plan.verdicts[item.id] = refusal
    for item, cycle in _cycles({key: item for key, item in new.items() if key not in plan.verdicts}):
        text = " → ".join([*cycle[:8], "…"] if len(cycle) > 8 else cycle)
        plan.verdicts[item.id] = TaskError(
            Problem("after", f"{item.id!r} could never start, it waits for the cycle {text}; remove one of these")
        )
    plan.new = [item for item in new.values() if isinstance(plan.verdicts[item.id], Acceptance)]
    return plan


def _same_or_conflict(item: New, stored: Stored) -> Verdict:
    if is_same(item.spec, stored.spec):
        return Acceptance(id=item.id, state=stored.state, created=False)
    return ConflictError(item.id)


def _refusal(item: New, verdicts: Mapping[str, Verdict], needed: Mapping[str, State]) -> TaskError | None:
    for need in sorted(item.needs):
        if need not in verdicts and need not in needed:
            return TaskError(
                Problem("after", f"{need!r} is the id of no task; submit that task first, or with this one")
            )
        if need in verdicts and not isinstance(verdicts[need], Acceptance):
            return TaskError(Problem("after", f"{need!r} was refused; correct that task first"))
    return None


def _place(item: New, new: Mapping[str, New], needed: Mapping[str, State]) -> None:
    """The state in which `item` begins; every task it needs has been placed."""
    states = [new[need].state if need in new else needed[need] for need in item.needs]
    if State.FAILED in states or State.CANCELLED in states:
        item.state = State.CANCELLED
    else:
        item.waiting_for = sum(state in _UNFINISHED for state in states)
        item.state = State.BLOCKED if item.waiting_for else State.SCHEDULED if item.task.delay_s > 0 else State.QUEUED


def _in_order_of_needs(items: Mapping[str, New]) -> Iterable[New]:
    """Each after all that it needs among `items` (Kahn 1962); those on or behind a cycle never come."""
    missing = {key: sum(need in items for need in item.needs) for key, item in items.items()}
    dependents: dict[str, list[str]] = {}
    for key, item in items.items():
        for need in item.needs:
            if need in items:
                dependents.setdefault(need, []).append(key)
    ready = [key for key, count in missing.items() if count == 0]
    while ready:
        key = ready.pop()
        yield items[key]
        for dependent in dependents.get(key, ()):
            missing[dependent] -= 1
            if missing[dependent] == 0:
                ready.append(dependent)


def _cycles(items: Mapping[str, New]) -> Iterable[tuple[New, list[str]]]:
    """Each of `items` with a cycle it waits for, written `[a, b, a]`; every one of them needs another of them."""
    found: dict[str, list[str]] = {}
    for start in items:
        path: dict[str, None] = {}  # ordered
        key = start
        while key not in found and key not in path:
            path[key] = None
            key = min(need for need in items[key].needs if need in items)
        walked = list(path)
        cycle = found[key] if key in found else [*walked[walked.index(key) :], key]
        found.update(dict.fromkeys(walked, cycle))
        yield items[start], found[start]


def _insert(conn: Conn, items: Sequence[New], source: uuid.UUID) -> set[str]:
    """Insert in the order given; the ids that were new."""
    created: set[str] = set()
    for chunk in _chunks(items):
        columns: dict[str, Any] = {
            "ids": arrays.texts([item.id for item in chunk]),
            "names": arrays.texts([item.task.name or item.id for item in chunk]),
            "types": arrays.texts([item.task.type.value for item in chunk]),
            "priorities": arrays.numbers([item.task.priority.value for item in chunk]),
            "ranks": arrays.numbers([item.task.rank for item in chunk]),
            "specs": arrays.texts([item.spec for item in chunk]),
            "delays": arrays.numbers([item.task.delay_s for item in chunk]),
            "states": arrays.texts([item.state.value for item in chunk]),
            "waiting": arrays.numbers([item.waiting_for for item in chunk]),
            **dict(zip(("cpus", "mem", "gpus"), arrays.demands([item.task for item in chunk]), strict=True)),
            "source": source,
        }
        created.update(task_id for (task_id,) in conn.execute(_QUERIES.insert, columns))
    return created


def _notify(conn: Conn, states: Set[State]) -> None:
    """Hints, sent at commit: there is something to claim, a due time to learn of, or just more tasks.  Too many do no
    harm."""
    kinds = [kind for state, kind in ((State.QUEUED, "ready"), (State.SCHEDULED, "due")) if state in states]
    conn.execute(_QUERIES.notify, {"kinds": kinds or ["accepted"]})


def _find(conn: Conn, ids: list[str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    for chunk in _chunks(ids):
        rows = conn.execute(_QUERIES.find, {"ids": arrays.texts(chunk)})
        found.update((task_id, Stored(spec, State(state))) for task_id, spec, state in rows)
    return found


def _chunks(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
