"""Holds a history against the promise: what was acknowledged ends exactly once and is recorded exactly once, and every
execution beyond the first has a cause that the record of the one before names.  Pure; reads nothing but the history.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pysched.model import Reason
from tests.chaos.history import Amount, AttemptRow, DoneFile, Execution, History, Submitted, TaskRow

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_ENDED_FROM_OUTSIDE = frozenset(
    {"lost", "shutdown", "timeout", "user", "memory"}
)  # whatever the process itself had meant

_PARKED_AFTER = 3  # attempts that were lost together with their node


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule` is the name of the promise that was broken."""

    rule: str
    task: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.task}: {self.text}"


class _Facts:
    """The history by task."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.rows = {row.id: row for row in history.tasks}
        self.keys: dict[str, list[TaskRow]] = defaultdict(list)
        for row in history.tasks:
            self.keys[row.id].append(row)
            if row.name != row.id:
                self.keys[row.name].append(row)
        self.executions: dict[str, list[Execution]] = defaultdict(list)
        for execution in sorted(history.executions, key=lambda each: each.started_ns):
            self.executions[execution.task].append(execution)
        self.attempts: dict[str, list[AttemptRow]] = defaultdict(list)
        for attempt in sorted(history.attempts, key=lambda each: each.attempt):
            self.attempts[attempt.task].append(attempt)
        self.done: dict[str, list[DoneFile]] = defaultdict(list)
        for file in history.done:
            self.done[file.task].append(file)
        self.ends = Counter(end.task for end in history.ends)

    def home(self, incarnation: str) -> str:
        """Where it lived: the incarnations of a home adopt each other's attempts, and count as one node."""
        return self.history.homes.get(incarnation, incarnation)

    def submitted(self) -> Iterator[tuple[Submitted, TaskRow]]:
        """What was submitted and exists."""
        for each in self.history.submitted:
            for row in self.keys.get(each.key, ())[:1]:
                yield each, row


def violations(history: History) -> list[Violation]:
    """All that is wrong with `history`; empty: every promise was kept."""
    facts = _Facts(history)
    return [found for rule in _RULES for found in rule(facts)]


# ── what was accepted ─────────────────────────────────────────────────────────────────────────────


def _accepted(facts: _Facts) -> Iterator[Violation]:
    batches: dict[int, set[bool]] = defaultdict(set)
    for each in facts.history.submitted:
        rows = facts.keys.get(each.key, [])
        if each.acknowledged and not rows:
            yield Violation("lost", each.key, "was acknowledged, and the store does not know it")
        if len(rows) > 1:
            yield Violation("accepted twice", each.key, f"is {len(rows)} tasks: {', '.join(row.id for row in rows)}")
        if each.batch is not None:
            batches[each.batch].add(bool(rows))
    for batch, present in batches.items():
        if len(present) > 1:
            yield Violation("torn batch", f"batch {batch}", "some of its tasks exist, some do not")
    known = {each.key for each in facts.history.submitted}
    for row in facts.history.tasks:
        if row.id not in known and row.name not in known:
            yield Violation("foreign", row.id, "nobody submitted it")
    for name in facts.history.rejected:
        yield Violation("lost", name, "a good file was rejected")


# ── how it ended ──────────────────────────────────────────────────────────────────────────────────


def _ended(facts: _Facts) -> Iterator[Violation]:
    for row in facts.history.tasks:
        if row.state not in TERMINAL:
            yield Violation("never ended", row.id, f"is {row.state} after {row.attempts} attempts")
        elif facts.ends[row.id] != 1:
            yield Violation("ended twice", row.id, f"its row became terminal {facts.ends[row.id]} times")
    for task in facts.history.undelivered:
        yield Violation("no .done", task, "its file is still owed")


def _delivered(facts: _Facts) -> Iterator[Violation]:
    for row in facts.history.tasks:
        files = facts.done.get(row.id, [])
        if row.state in TERMINAL and not files:
            yield Violation("no .done", row.id, f"is {row.state} and has no file")
        if len(files) > 1:
            folders = ", ".join(file.folder for file in files)
            yield Violation("recorded twice", row.id, f"has {len(files)} .done files, in {folders}")
        for file in files:
            true = {
                "id": row.id,
                "status": row.state,
                "reason": row.reason,
                "attempts": row.attempts,
                "exit_code": row.exit_code,
                "result": row.result,
            }
            said = {name: file.content.get(name) for name in true}
            wrong = [f"{name} {said[name]!r} for {true[name]!r}" for name in true if said[name] != true[name]]
            if wrong:
                yield Violation(".done disagrees", row.id, f"its file says {', '.join(wrong)}")
    for task in facts.done.keys() - facts.rows.keys():
        yield Violation(".done disagrees", task, "has a file and is no task")


# ── every execution is recorded, once ─────────────────────────────────────────────────────────────


def _recorded(facts: _Facts) -> Iterator[Violation]:
    for task in facts.executions.keys() - facts.rows.keys():
        yield Violation("not recorded", task, "ran and is no task")
    for row in facts.history.tasks:
        attempts = facts.attempts.get(row.id, [])
        numbers = Counter(each.attempt for each in attempts)
        for number, count in numbers.items():
            if count > 1:
                yield Violation("recorded twice", row.id, f"attempt {number} has {count} records")
        if row.state in TERMINAL and sorted(numbers) != list(range(1, row.attempts + 1)):
            yield Violation("not recorded", row.id, f"{row.attempts} attempts, records of {sorted(numbers)}")
        runs = Counter(each.attempt for each in facts.executions.get(row.id, ()))
        for number, count in runs.items():
            if number not in numbers:
                yield Violation("not recorded", row.id, f"attempt {number} ran and has no record")
            if count > 1:
                yield Violation("unexplained execution", row.id, f"attempt {number} ran {count} times")


def _agreed(facts: _Facts) -> Iterator[Violation]:
    """The record of an attempt and the job's own word."""
    for task, attempts in facts.attempts.items():
        runs = {each.attempt: each for each in facts.executions.get(task, ())}
        for attempt in attempts:
            if attempt.reason is not None and attempt.reason.partition(";")[0] in _ENDED_FROM_OUTSIDE:
                continue
            run = runs.get(attempt.attempt)
            told = f"attempt {attempt.attempt} is recorded as {attempt.reason or attempt.state}"
            if attempt.exit_code is not None and (run is None or run.code != attempt.exit_code):
                yield Violation("wrong record", task, f"{told}, the job says {run.code if run else 'it never ran'}")
            if (attempt.state == "succeeded") != (attempt.exit_code == 0):
                yield Violation("wrong record", task, f"{told}, with exit code {attempt.exit_code}")
            if run is not None and attempt.pid is not None and attempt.pid != run.pid:
                yield Violation("wrong record", task, f"{told} with pid {attempt.pid}, the job says {run.pid}")
            if run is not None and facts.home(attempt.node) != facts.home(run.node):
                yield Violation("wrong record", task, f"{told} on node {attempt.node}, the job says {run.node}")


def _kept(facts: _Facts) -> Iterator[Violation]:
    """What the last attempt left, its result and its output, is the task's, all of it and nobody else's."""
    for row in facts.history.tasks:
        if row.state != "succeeded":
            continue
        if row.result != {"task": row.id, "attempt": row.attempts}:
            yield Violation("wrong result", row.id, f"attempt {row.attempts} succeeded, its result is {row.result!r}")
        for file in facts.done.get(row.id, ()):
            if file.output != f"{row.id} {row.attempts}\n":
                yield Violation("wrong output", row.id, f"attempt {row.attempts} succeeded, its log is {file.output!r}")


# ── every further execution has its cause ─────────────────────────────────────────────────────────


def _explained(facts: _Facts) -> Iterator[Violation]:
    for task, attempts in facts.attempts.items():
        for attempt in attempts[:-1]:
            if attempt.state == "succeeded" or attempt.reason is None:
                yield Violation(
                    "unexplained execution", task, f"attempt {attempt.attempt} {attempt.state}, yet another followed"
                )
        row = facts.rows.get(task)
        if row is not None and attempts and row.state in TERMINAL and row.reason != "user":
            last = attempts[-1]
            if (row.state, row.reason) != (last.state, last.reason):
                yield Violation(
                    "wrong record",
                    task,
                    f"is {row.state} ({row.reason}), its last attempt {last.state} ({last.reason})",
                )


def _retried(facts: _Facts) -> Iterator[Violation]:
    for each, row in facts.submitted():
        failed = sum(attempt.state == "failed" for attempt in facts.attempts.get(row.id, ()))
        if row.state == "failed" and failed <= each.max_retries and not _is_parked(facts, row):
            yield Violation("gave up early", row.id, f"failed after {failed} of {each.max_retries + 1} tries")
        if failed > each.max_retries + 1:
            yield Violation("unexplained execution", row.id, f"{failed} tries, {each.max_retries + 1} were allowed")


def _is_parked(facts: _Facts, row: TaskRow) -> bool:
    """Poison: its last three attempts were each lost together with their node."""
    last = facts.attempts.get(row.id, ())[-_PARKED_AFTER:]
    lost = sum(attempt.reason is not None and attempt.reason.startswith("lost") for attempt in last)
    return row.reason == Reason.parked(_PARKED_AFTER) and lost == _PARKED_AFTER


def _alone(facts: _Facts) -> Iterator[Violation]:
    for task, runs in facts.executions.items():
        for run in runs:
            if not run.alone:
                yield Violation("overlap", task, f"attempt {run.attempt} began while another was alive")
        for before, after in itertools.pairwise(runs):
            if before.ended_ns is not None and before.ended_ns > after.started_ns:
                yield Violation("overlap", task, f"attempts {before.attempt} and {after.attempt} ran at once")


def _in_order(facts: _Facts) -> Iterator[Violation]:
    for each, row in facts.submitted():
        runs = facts.executions.get(row.id, [])
        for need in each.after:
            done = [run for run in facts.executions.get(need, ()) if run.code == 0]
            if runs and not any(run.ended_ns is not None and run.ended_ns < runs[0].started_ns for run in done):
                yield Violation("out of order", row.id, f"ran before {need}, which it needs, had succeeded")


def _apart(facts: _Facts) -> Iterator[Violation]:
    for each, row in facts.submitted():
        for run in facts.executions.get(row.id, ()):
            if run.call > 1 and not each.reuse:
                yield Violation("shared process", row.id, f"attempt {run.attempt} was call {run.call} of its process")


def _within_offer(facts: _Facts) -> Iterator[Violation]:
    """What runs on a node at one time never asks for more than that has.

    An execution that wrote no last word was ended some time after its first one, and is left out."""
    offer = facts.history.offer
    changes: dict[str, list[tuple[int, int, Amount, Execution]]] = defaultdict(list)
    for each, row in facts.submitted():
        for run in facts.executions.get(row.id, ()) if each.holds != Amount() else ():
            if run.ended_ns is not None:
                place = facts.home(run.node)
                changes[place] += [(run.started_ns, 1, each.holds, run), (run.ended_ns, -1, each.holds, run)]
    for place, events in changes.items():
        held: Counter[str] = Counter()
        for _, sign, holds, run in sorted(events, key=lambda event: event[:2]):
            held["cpus"] += sign * round(1000 * holds.cpus)
            held["mib"] += sign * holds.mib
            part = round(1000 * min(1.0, holds.gpus))
            for device in run.gpus if holds.gpus else ():
                held[f"gpu {device}"] += sign * part
            limits = {"cpus": round(1000 * offer.cpus), "mib": offer.mib}
            over = [f"{amount} {name}" for name, amount in held.items() if amount > limits.get(name, 1000)]
            if over:
                yield Violation("too much at once", run.task, f"began while {', '.join(over)} were held on {place}")
        for _, sign, holds, run in events:
            if sign > 0 and len(run.gpus) != math.ceil(holds.gpus):
                yield Violation("too much at once", run.task, f"was given {run.gpus}, and asked for {holds.gpus:g}")


def _clean(facts: _Facts) -> Iterator[Violation]:
    for process in facts.history.leftovers:
        yield Violation("left running", "-", process)
    for defect in facts.history.defects:
        yield Violation("defect", "-", defect)


_RULES: tuple[Callable[[_Facts], Iterable[Violation]], ...] = (
    _accepted,
    _ended,
    _delivered,
    _recorded,
    _agreed,
    _kept,
    _explained,
    _retried,
    _alone,
    _in_order,
    _apart,
    _within_offer,
    _clean,
)
