"""Where a task can stand, and its class and type: the words that servers and clients share.

Apart from `pysched.model`, because a client command needs these alone and has to start fast.

The states of a task (drawn once, here)::

                 ┌► blocked ──┐
     (accepted) ─┼► scheduled ┼► queued ─► running ─┬► succeeded
                 └────────────┘     ▲               ├► failed
                                    └─ scheduled ◄──┤ (retry)
            cancelled ◄── any state before the end ─┘

`queued` covers two situations that a user need not tell apart: waiting in the store
(`tasks.node is null`) and claimed by a node, waiting for a worker there (`tasks.node` set).
"""

from __future__ import annotations

import enum


class Priority(enum.IntEnum):
    """The class of a task; the smaller number starts first."""

    HIGH = 0
    MED = 1
    LOW = 2


class TaskType(str, enum.Enum):
    """What a task without a command simulates, and whether it may name an entrypoint."""

    SYSTEM = "system"
    ML = "ml"


class State(str, enum.Enum):
    """Where a task stands; see the drawing at the top of this module."""

    BLOCKED = "blocked"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


STATES = {state.value: state for state in State}  # a look-up costs a tenth of a call of the class
TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
