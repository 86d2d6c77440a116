"""Decisions, and nothing else: pure functions of (state, event, now) that read no clock, no random
source and no I/O, so that the shipped logic also runs under a seeded simulator (rule 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pysched.model import AttemptKey, Exit, Outcome, Priority, Reason, State

BACKOFF_CAP_S = 60.0
PREFETCH_HORIZON_S = (0.05, 0.5)  # claim ahead what will start within two claims' time, but at least, at most this
PREFETCH_ALONE_S = (0.4, 0.5)
PREFETCH_MAX = 1024
CRASHES_MAX = 3  # nodes that a task may take down
SUSPECT_S = 60.0
OVERDUE_SHARE = 4  # of so many starts one goes to what is overdue first


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """What a task says about further attempts."""

    max_retries: int
    retry_delay_s: float


def backoff_s(failures: int, delay_s: float, jitter: float) -> float:
    """Seconds before the attempt that follows the `failures`-th failure (from 1).

    Doubling with full jitter: uniform in [0, delay·2^(failures-1)], the bound capped at 60 s or at the
    task's own first delay if that is longer ("Exponential Backoff And Jitter", AWS Architecture
    Blog, 2015).  `jitter` is the caller's draw from [0, 1).
    """
    bound = min(delay_s * 2.0 ** min(failures - 1, 64), max(BACKOFF_CAP_S, delay_s))
    return bound * jitter


def cause_of(exit: Exit) -> tuple[State, str | None]:
    """The state and reason of an attempt, from how its process ended."""
    if exit.cause is not None:
        cancelled = exit.cause in {Reason.USER, Reason.SHUTDOWN}
        return (State.CANCELLED if cancelled else State.FAILED), exit.cause
    if exit.signal is not None:
        return State.FAILED, Reason.signal(exit.signal)
    if exit.exit_code != 0:
        return State.FAILED, Reason.exit(exit.exit_code if exit.exit_code is not None else -1)
    return State.SUCCEEDED, None


def is_poison(crashes: int) -> bool:
    """Whether a task has taken down so many nodes, one after the other, that it is parked: failed, whatever its
    retries."""
    return crashes >= CRASHES_MAX


def is_suspect(*, since_s: float, crashed_s: float) -> bool:
    """Whether an attempt that a node had in its hands from `since_s` on may be why that node ended by itself at
    `crashed_s`.  One that it had had for long is not: what lets a node live for so long is no poison."""
    return crashed_s - since_s < SUSPECT_S


def verdict(
    key: AttemptKey, exit: Exit, *, failures: int, rule: RetryRule, jitter: float, void: bool = False
) -> Outcome:
    """What an ended attempt means for its task.

    `failures` counts earlier attempts that failed.  An attempt ended by `shutdown` is handed back at
    no cost (`void`: it never even had a process); one that failed is tried again while `failures` <
    `max_retries`.
    """
    state, reason = cause_of(exit)
    stated = Reason.surviving(reason, exit.survivors) if exit.survivors else reason
    if reason == Reason.SHUTDOWN:
        return Outcome(
            key=key,
            exit=exit,
            attempt_state=state,
            next_state=State.QUEUED,
            reason=stated,
            counts=False,
            void=void,
        )
    if state is State.FAILED and failures < rule.max_retries:
        delay = backoff_s(failures + 1, rule.retry_delay_s, jitter)
        return Outcome(
            key=key, exit=exit, attempt_state=state, next_state=State.SCHEDULED, reason=stated, delay_s=delay
        )
    return Outcome(key=key, exit=exit, attempt_state=state, next_state=state, reason=stated)


def prefetch(starts_per_s: float, claim_s: float = 0.0, *, alone: bool = False) -> int:
    """How many attempts a node may hold beyond its free workers; `claim_s` is how long a claim takes at present.

    Just enough to keep the workers busy while a claim is under way; zero for long jobs, so that no node
    hoards what another could start now.  A node that is `alone` claims fewer times, and more each.
    """
    least, most = PREFETCH_ALONE_S if alone else PREFETCH_HORIZON_S
    return min(int(starts_per_s * min(max(2 * claim_s, least), most)), PREFETCH_MAX)


def claim_limit(*, free_workers: int, ahead: int, waiting: tuple[int, int, int]) -> tuple[Priority, int] | None:
    """The next claim: (lowest priority to take, how many), or None for none now.

    `waiting` holds the attempts already claimed and not yet started, by priority.  A class may be
    claimed while fewer than `free_workers + ahead` of its own or a higher class wait here, so a HIGH
    task is never kept in the store by LOW ones that this node took earlier.
    """
    room = free_workers + ahead
    for lowest in reversed(Priority):
        limit = room - sum(waiting[: lowest + 1])
        # Under load, wait until half of the look-ahead is used: one claim of many beats many of one.
        if limit > 0 and limit >= min(room, max(1, ahead // 2)):
            return lowest, limit
    return None


# ── ageing: LOW does not wait for ever, whatever HIGH does ────────────────────────────────────────


def is_overdue(priority: int, waited: float, ageing: float) -> bool:
    """Whether what waits has done so for `ageing` for each class above its own; an `ageing` of 0 turns this off.

    It is then started as one of HIGH, out of a share of its own (`OVERDUE_SHARE`): neither does a stream of HIGH keep
    it waiting, nor does a backlog of what is overdue take more than the share from HIGH.
    """
    return ageing > 0 and priority > 0 and waited >= priority * ageing


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A part of a claim: up to `limit` tasks of `priority` that have waited `after_s`, the longest wait first."""

    priority: Priority
    after_s: float
    limit: int


def overdue_claims(*, claimed: int, limit: int, ageing_s: float) -> Sequence[Overdue]:
    """What of the next `limit` claims goes first to overdue tasks, `claimed` being the sum of all limits before.

    Over any run of claims that is a share of 1 / `OVERDUE_SHARE`, half of it for MED, half for LOW, also where each
    claim is of a single task.
    """
    if ageing_s <= 0:
        return []
    period = 2 * OVERDUE_SHARE
    found = []
    for priority, offset in ((Priority.MED, 0), (Priority.LOW, OVERDUE_SHARE)):
        quota = (claimed + limit + offset) // period - (claimed + offset) // period
        if quota:
            found.append(Overdue(priority=priority, after_s=priority * ageing_s, limit=quota))
    return found
