"""The vocabulary every stage speaks: states, priorities and the records passed between stages.

Nothing here does I/O, reads a clock or imports a stage.  No record is changed once it is made; those that each attempt
needs are not `frozen` all the same, since that would make them three times as dear.  The states are drawn in
`pysched.states`; what a user may *submit* is described in `pysched.task`.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from pysched.ids import ID_PATTERN as ID_PATTERN
from pysched.ids import is_valid_id as is_valid_id
from pysched.ids import new_id as new_id
from pysched.states import STATES as STATES
from pysched.states import TERMINAL as TERMINAL
from pysched.states import Priority as Priority
from pysched.states import State as State
from pysched.states import TaskType as TaskType


class Reason:
    """The words that may stand in `reason`; `exit N` and `signal NAME` are made by functions."""

    TIMEOUT = "timeout"
    LOST = "lost"
    MEMORY = "memory"
    LOG_LIMIT = "log_limit"
    USER = "user"
    DEPENDENCY = "dependency"
    SHUTDOWN = "shutdown"

    @staticmethod
    def exit(code: int) -> str:
        return f"exit {code}"

    @staticmethod
    def signal(name: str) -> str:
        return f"signal {name}"

    @staticmethod
    def parked(crashes: int) -> str:
        return f"lost: {crashes} nodes ended while they ran it; retry it by hand"

    @staticmethod
    def surviving(reason: str | None, survivors: int) -> str:
        return f"{reason}; {survivors} of its processes survive KILL"

    @staticmethod
    def spawn(detail: str) -> str:
        return f"spawn: {detail}"


class AttemptKey(NamedTuple):
    """The fence: every write about an attempt is guarded by these three values (rule 3)."""

    id: str  # the task
    attempt: int  # from 1, by execution
    token: int  # lease token, unique over all claims of the store


@dataclass(slots=True, kw_only=True)
class Claim:
    """A node's right to run one attempt of a task, as the store granted it."""

    key: AttemptKey
    priority: Priority
    rank: int  # larger first
    sequence: int  # arrival order, given by the store at acceptance
    spec: str  # the task as submitted, JSON, defaults left out; read it with Task.from_spec
    failures: int  # attempts so far that count against max_retries
    submitted_at: datetime
    waited_s: float = field(compare=False)  # since it could have been claimed; differs each time one asks


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """A claim whose node is gone."""

    claim: Claim
    holder: uuid.UUID  # incarnation that holds it
    node: str  # incarnation that started its attempt: the holder, or one that the holder came after
    pid: int | None  # of the attempt, if its start was recorded
    started_at: datetime | None
    crashes: int  # nodes that ended by themselves while they ran the task, one after the other


@dataclass(slots=True, kw_only=True)
class Started:
    """An attempt has a process."""

    key: AttemptKey
    pid: int
    started_at: datetime  # UTC, this node's clock


@dataclass(slots=True, kw_only=True)
class Exit:
    """How an attempt ended, before anybody decided what that means for its task."""

    pid: int | None  # None: no process was ever started
    started_at: datetime | None
    finished_at: datetime
    exit_code: int | None = None  # of a process that exited
    signal: str | None = None  # e.g. "SIGKILL", of a process that was ended by a signal
    cause: str | None = None  # a Reason that overrules exit code and signal (timeout, spawn: …, lost)
    wait_ms: float | None = None  # of a first attempt: acceptance → process
    cpu_ms: int = 0  # user + system, the process and the children it waited for
    max_rss_kb: int = 0  # peak of the largest process
    stdout: str | None = None  # log paths; None: of an attempt with an exit code, it wrote nothing
    stderr: str | None = None
    result: str | None = None  # JSON text ≤64 KiB that the job left in PYSCHED_RESULT
    result_file: bool = True  # it is still there; False: it came without a file
    survivors: int = 0  # processes of the attempt that KILL has not ended


@dataclass(slots=True, kw_only=True)
class Outcome:
    """An ended attempt together with the verdict on its task; what `Store.finish` writes."""

    key: AttemptKey
    exit: Exit
    attempt_state: State  # of the attempt: succeeded, failed or cancelled
    next_state: State  # of the task: terminal, SCHEDULED (retry) or QUEUED (handed back)
    reason: str | None  # of the attempt, and of the task if next_state is terminal
    delay_s: float = 0.0  # before the next attempt, with SCHEDULED
    counts: bool = True  # whether the attempt counts against max_retries
    void: bool = False  # no process ever existed: the attempt leaves no row, its number is used again
    crashed: bool = False  # its node ended while it ran
    holder: uuid.UUID | None = None  # whose claim it was, where a sweep ends it; None: the caller's


@dataclass(slots=True, kw_only=True)
class Record:
    """A terminal task: the fields of `ID.done`, in the contract's order."""

    id: str
    name: str
    type: str
    priority: str
    status: str
    reason: str | None
    exit_code: int | None
    signal: str | None
    attempts: int  # executions of the task, all kinds of end included
    node: str | None  # incarnation that ran the last attempt; None if it never ran
    submitted_at: datetime
    started_at: datetime | None  # of the first attempt
    finished_at: datetime
    wait_ms: int | None  # submitted_at → started_at
    run_ms: int | None  # of the last attempt
    result: object  # any JSON value
    stdout: str | None
    stderr: str | None
    # Not of the file: the row of the outbox that it is owed by, with others; None: one of its own, or not known.
    batch: int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """The store's durable yes to one submitted task."""

    id: str
    state: State
    created: bool  # False: the same task was accepted before


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What a node says of itself when it registers."""

    incarnation: uuid.UUID  # random, new at every start; the only identity of a node
    home: uuid.UUID  # of the home folder; a new incarnation takes over its predecessor's work
    host: str  # for people only
    pid: int
    workers: int
    lanes: int
    version: str
    cpus: int = 0  # thousandths that its attempts may hold at a time …
    mem: int = 0  # … bytes …
    gpus: int = 0  # … and thousandths


def mark_of(task_id: str, attempt: int, node: str) -> int:
    """By which the processes of an attempt are known on a machine: 1 … 2**61-2, the same wherever it is computed."""
    digest = hashlib.blake2b(f"{task_id}\0{attempt}\0{node}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**61 - 1) or 1


LISTENING = "listening"  # stands among the store's notifications where hearing begins: some may have been missed
