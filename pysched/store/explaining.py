"""Why a task does not run yet: facts from the store, and the verdict on them, which is pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pysched import resources
from pysched.errors import NotFoundError
from pysched.model import State
from pysched.resources import Demand
from pysched.store import sql
from pysched.store.database import Conn, Database
from pysched.store.views import rfc3339

SHOWN = 20  # of the tasks that it waits for
COUNTED = 10_000  # of the tasks that come first
_NODES_SHOWN = 4

_QUERIES = sql.load("control")


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What decides when a task starts."""

    state: State
    place: str  # see migrations/0001_initial.sql
    attempts: int
    reason: str | None
    due_at: datetime | None
    node: str | None  # that has claimed it
    waiting_for: int  # how many tasks it needs …
    needs: list[tuple[str, str]]  # … and the first of them: id, state
    ahead: int  # ready tasks that come first, as far as they were counted
    ahead_is_more: bool
    paused: bool
    nodes: int  # alive and not draining …
    workers: int  # … what they run at once …
    running: int  # … and what they ran at their last heartbeat
    short_of: tuple[str, ...] = ()  # what those lack that run fewer for it
    demand: Demand | None = None  # what it asks for beside a worker
    offers: list[tuple[Demand, Demand]] = field(default_factory=list)  # what each of those nodes has, and what is held


def explain(database: Database, task_id: str) -> dict[str, Any]:
    """See `Control.explain`."""
    situation = database.read(lambda conn: _situation(conn, task_id))
    why, message = verdict(situation)
    return {
        "id": task_id,
        "status": situation.state.value,
        "why": why,
        "message": message,
        "waiting_for": [{"id": need, "status": state} for need, state in situation.needs],
        "ahead": situation.ahead,
        "ahead_is_more": situation.ahead_is_more,
        "due_at": rfc3339(situation.due_at),
        "node": situation.node,
        "paused": situation.paused,
        "nodes": situation.nodes,
        "workers": situation.workers,
        "running": situation.running,
        "asks_for": None if situation.demand is None else resources.shown(situation.demand),
    }


def verdict(now: Situation) -> tuple[str, str]:
    """The first thing in its way, as a word and as a line for people."""
    due = rfc3339(now.due_at)
    ahead = f"{now.ahead}{' or more' if now.ahead_is_more else ''} ready task{'' if now.ahead == 1 else 's'}"
    if now.state.terminal:
        return "ended", f"it has ended: {now.state.value}{f' ({now.reason})' if now.reason else ''}"
    if now.state is State.RUNNING:
        return "running", f"attempt {now.attempts} runs on node {now.node}"
    if now.state is State.BLOCKED:
        shown = ", ".join(f"{need} ({state})" for need, state in now.needs)
        more = f" and {now.waiting_for - len(now.needs)} more" if now.waiting_for > len(now.needs) else ""
        return "blocked", f"waits for {shown}{more}"
    if now.state is State.SCHEDULED:
        if now.attempts:
            return (
                "backoff",
                f"attempt {now.attempts} has failed; the next one starts no sooner than {due}",
            )
        return "delayed", f"starts no sooner than {due}"
    if now.place == "claimed":
        free = "a worker is free" if now.demand is None else f"a worker and {resources.shown(now.demand)} are free"
        return "claimed", f"node {now.node} has it and starts it when {free}"
    if now.paused:
        return "paused", "the queue is paused; resume it with POST /queue/resume or 'scheduler queue resume'"
    if not now.nodes:
        return "no_node", "no node is alive that takes tasks; start one with 'scheduler run' or 'scheduler up'"
    if now.demand is not None and (found := _lacking(now.demand, now.offers)) is not None:
        return found
    if now.ahead or now.running >= now.workers:
        first = f"{ahead} come first" if now.ahead != 1 else f"{ahead} comes first"
        busy = f"{min(now.running, now.workers)} of {now.workers} workers are busy{_fewer(now.short_of)}"
        return "behind", f"{first}, {busy}" if now.ahead else f"it is the next one; {busy}"
    return "next", "nothing is in its way; a node takes it in a moment"


def _fewer(short_of: Sequence[str]) -> str:
    """That some of the workers are withheld for now."""
    if not short_of:
        return ""
    return f", others rest while their machine is short of {' and '.join(sorted(set(short_of)))}"


def _lacking(demand: Demand, offers: Sequence[tuple[Demand, Demand]]) -> tuple[str, str] | None:
    """What is not there for it, or not now."""
    asked = f"it asks for {resources.shown(demand)}"
    fitting = [(has, held) for has, held in offers if demand.within(has)]
    if not fitting:
        most = resources.shown(Demand(*map(max, zip(*(has for has, _ in offers), strict=True))))
        return "too_large", f"{asked}, and no node has so much ({most} at most); it waits for a larger one"
    if any(demand.within(has.without(held)) for has, held in fitting):
        return None
    free = "; ".join(
        f"{resources.shown(has.without(held))} of {resources.shown(has)}" for has, held in fitting[:_NODES_SHOWN]
    )
    return "resources", f"{asked}, and free are, node by node: {free}"


def _situation(conn: Conn, task_id: str) -> Situation:
    rows = conn.execute(_QUERIES.situation, {"id": task_id}).fetchall()
    if not rows:
        raise NotFoundError(f"there is no task {task_id}")
    state, place, priority, rank, sequence, attempts, due_at, holder, reason, waiting_for, paused, *asked = rows[0]
    needs: list[tuple[Any, ...]] = []
    ahead = 0
    if state == State.BLOCKED.value:
        needs = conn.execute(_QUERIES.waits_for, {"id": task_id, "limit": SHOWN}).fetchall()
    elif place in {"ready", "sized"}:
        key = {"priority": priority, "rank": rank, "sequence": sequence, "limit": COUNTED + 1}
        ((ahead,),) = conn.execute(_QUERIES.ahead, key).fetchall()
    living = conn.execute(_QUERIES.capacity).fetchall()
    return Situation(
        state=State(state),
        place=place,
        attempts=attempts,
        reason=reason,
        due_at=due_at,
        node=None if holder is None else str(holder),
        waiting_for=waiting_for,
        needs=[(need, str(its_state)) for need, its_state in needs],
        ahead=min(ahead, COUNTED),
        ahead_is_more=ahead > COUNTED,
        paused=paused,
        nodes=len(living),
        workers=sum(row[0] for row in living),
        running=sum(row[1] for row in living),
        short_of=tuple(row[2] for row in living if row[2] is not None),
        demand=None if asked[0] is None else Demand(*asked),
        offers=[(Demand(*row[3:6]), Demand(*row[6:9])) for row in living],
    )
