"""What becomes of attempts whose node is gone: recorded as `lost` if they had started, else handed back.

::

    claimed, start not recorded ─► handed back (it may have run for the instant between spawn and the record)
    running                     ─► failed: lost ─► retry rule, or parked after so many crashes (`policy.is_poison`)

A node that its guard starts again adopts what runs first (`adoption`); this is for what is left then.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

from pysched import policy
from pysched.engine.leftovers import Identity, end_leftovers
from pysched.errors import TaskError
from pysched.model import Abandoned, Exit, Outcome, Reason
from pysched.task import Task

_NO_RETRIES = policy.RetryRule(max_retries=0, retry_delay_s=0)


def identity(item: Abandoned) -> Identity:
    """What the processes of an attempt say of it."""
    return Identity(item.claim.key.id, item.claim.key.attempt, item.node)


def end_processes(abandoned: Sequence[Abandoned]) -> int:
    """Kill what the abandoned attempts left on this machine; returns how many processes that were.

    Must come before their outcomes are written: from then on somebody may start the next attempt.
    """
    return end_leftovers(set(map(identity, abandoned))) if abandoned else 0


def outcomes(abandoned: Sequence[Abandoned]) -> list[Outcome]:
    """The verdict on each abandoned attempt."""
    return [lost(item, crashes=item.crashes + 1) if item.started_at else returned(item) for item in abandoned]


def lost(item: Abandoned, *, crashes: int) -> Outcome:
    """Of an attempt that ran; `crashes`: with the end of the node that ran it, if that is to be counted."""
    poison = policy.is_poison(crashes)
    cause = Reason.parked(crashes) if poison else Reason.LOST
    outcome = _verdict(item, cause, _NO_RETRIES if poison else _rule(item))
    return replace(outcome, crashed=crashes > item.crashes)


def returned(item: Abandoned, *, void: bool = False) -> Outcome:
    """Of an attempt that did not start, as far as is known; `void`: for certain."""
    return _verdict(item, Reason.SHUTDOWN, _NO_RETRIES, void=void)


def _rule(item: Abandoned) -> policy.RetryRule:
    try:
        task = Task.from_spec(item.claim.key.id, item.claim.spec)
    except TaskError:  # written by a newer version: what it says of retries cannot be read here
        return _NO_RETRIES
    return policy.RetryRule(max_retries=task.max_retries, retry_delay_s=task.retry_delay_s)


def _verdict(item: Abandoned, cause: str, rule: policy.RetryRule, *, void: bool = False) -> Outcome:
    started_at = None if void else item.started_at
    now = datetime.now(timezone.utc)
    outcome = policy.verdict(
        item.claim.key,
        Exit(pid=item.pid, started_at=started_at, finished_at=now, cause=cause),
        failures=item.claim.failures,
        rule=rule,
        jitter=random.random(),  # noqa: S311 - spreads retries, keeps no secret
        void=void,
    )
    return replace(outcome, holder=item.holder)
