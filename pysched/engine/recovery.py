"""What becomes of attempts whose node is gone: recorded as `lost` if they had started, else handed back.

::

    claimed, start not recorded ─► handed back (it may have run for the instant between spawn and the record)
    running                     ─► failed: lost ─► retry rule
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timezone

from pysched import policy
from pysched.engine.leftovers import Identity, end_leftovers
from pysched.errors import TaskError
from pysched.model import Abandoned, Exit, Outcome, Reason
from pysched.task import Task


def end_processes(abandoned: Sequence[Abandoned]) -> int:
    """Kill what the abandoned attempts left on this machine; returns how many processes that were.

    Must come before their outcomes are written: from then on somebody may start the next attempt.
    """
    if not abandoned:
        return 0
    return end_leftovers({Identity(item.claim.key.id, item.claim.key.attempt, item.node) for item in abandoned})


def outcomes(abandoned: Sequence[Abandoned]) -> list[Outcome]:
    """The verdict on each abandoned attempt."""
    return [_outcome(item, datetime.now(timezone.utc), random.random()) for item in abandoned]  # noqa: S311 - jitter


def _outcome(item: Abandoned, now: datetime, jitter: float) -> Outcome:
    try:
        task = Task.from_spec(item.claim.key.id, item.claim.spec)
        rule = policy.RetryRule(max_retries=task.max_retries, retry_delay_s=task.retry_delay_s)
    except TaskError:  # written by a newer version: what it says of retries cannot be read here
        rule = policy.RetryRule(max_retries=0, retry_delay_s=0)
    cause = Reason.LOST if item.started_at is not None else Reason.SHUTDOWN
    return policy.verdict(
        item.claim.key,
        Exit(pid=item.pid, started_at=item.started_at, finished_at=now, cause=cause),
        failures=item.claim.failures,
        rule=rule,
        jitter=jitter,
    )
