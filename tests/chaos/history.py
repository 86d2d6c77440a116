"""What happened in a run, as three independent witnesses tell it.

::

    clients   what was submitted, and which of it was acknowledged        Submitted
    jobs      the ledger that they write themselves                       Execution
    store     its rows, its log of ends (written by a trigger), `.done`   TaskRow, AttemptRow, End, DoneFile
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Of what tasks hold while they run, and nodes have."""

    cpus: float = 0.0
    mib: int = 0
    gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A task that a client tried to submit.  `key` is its id, or its name where the server was to make the id."""

    key: str
    acknowledged: bool = True
    batch: int | None = None  # all of one batch, or none
    max_retries: int = 3
    after: tuple[str, ...] = ()
    holds: Amount = Amount()
    reuse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A process of a job, by its own word."""

    task: str
    attempt: int
    pid: int
    started_ns: int
    alone: bool = True  # no other execution of the task was alive when it began
    ended_ns: int | None = None  # None: it was ended
    code: int | None = None  # with which it meant to exit
    node: str = ""  # incarnation that started it
    gpus: tuple[str, ...] = ()  # devices that it was given
    call: int = 1  # the number of this call in its process


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    id: str
    name: str
    state: str
    reason: str | None = None
    attempts: int = 1
    failures: int = 0
    exit_code: int | None = None
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    task: str
    attempt: int
    state: str
    reason: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """A change of a task's row into a terminal state."""

    task: str
    state: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneFile:
    folder: str
    task: str
    content: Mapping[str, Any]
    output: str | None = None  # what is in the log of standard output that it names


@dataclass(slots=True, kw_only=True)
class History:
    submitted: list[Submitted] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    tasks: list[TaskRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    done: list[DoneFile] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)  # ids of ended tasks that still owe a file
    rejected: list[str] = field(default_factory=list)  # files that the intake refused
    leftovers: list[str] = field(default_factory=list)  # processes that outlived everything
    defects: list[str] = field(default_factory=list)  # what the product's own messages call a defect
    homes: Mapping[str, str] = field(default_factory=dict)  # of incarnations: whose jobs they run, one after the other
    offer: Amount = Amount()  # what the node of each home has


def read_ledger(lines: Iterable[str]) -> list[Execution]:
    """The executions in a ledger; ValueError for a line that no job writes."""
    begun: dict[tuple[str, int, int], Execution] = {}
    for line in lines:
        kind, task, attempt, pid, value, clock, *more = line.split()
        key = (task, int(attempt), int(pid))
        if kind == "S" and key not in begun and len(more) == 3:
            node, gpus, call = more
            begun[key] = Execution(
                task=task,
                attempt=key[1],
                pid=key[2],
                started_ns=int(clock),
                alone=value == "1",
                node=node,
                gpus=() if gpus == "-" else tuple(gpus.split(",")),
                call=int(call),
            )
        elif kind == "E" and key in begun and begun[key].ended_ns is None and not more:
            begun[key] = replace(begun[key], ended_ns=int(clock), code=int(value))
        else:
            raise ValueError(f"the ledger has a line out of place: {line!r}")
    return list(begun.values())
