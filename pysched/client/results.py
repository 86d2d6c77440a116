"""The shapes of answers, for type checkers: at run time they are the server's JSON as it came.

Typed dictionaries and no pydantic models, because importing pydantic takes longer than a client command may take
as a whole, and because a field that a newer server adds must not be an error.
"""

from __future__ import annotations

from typing import Any, TypedDict


class Accepted(TypedDict):
    """A task that the server knows, and where it stands."""

    id: str
    status: str


class Attempt(TypedDict):
    """One execution of a task."""

    attempt: int  # from 1
    node: str
    status: str
    reason: str | None
    pid: int | None
    started_at: str | None
    finished_at: str | None
    exit_code: int | None
    signal: str | None
    cpu_ms: int | None
    max_rss_kb: int | None
    stdout: str | None
    stderr: str | None


class _Task(TypedDict):
    id: str
    sequence: int  # order of arrival
    name: str
    type: str
    priority: str
    rank: int
    status: str
    reason: str | None
    cancel_requested: bool
    waiting_for: int
    due_at: str | None
    failures: int
    node: str | None
    submitted_at: str
    started_at: str | None
    finished_at: str | None
    wait_ms: int | None
    run_ms: int | None
    exit_code: int | None
    signal: str | None
    result: Any
    stdout: str | None
    stderr: str | None
    progress: Any  # of a running task that tells: JSON, or text


class TaskSummary(_Task):
    """A task in a list."""

    attempts: int


class TaskDetail(_Task):
    """A task by itself."""

    attempts: list[Attempt]
    task: dict[str, Any]  # as submitted, without id and defaults


class Node(TypedDict):
    """A running scheduler."""

    incarnation: str
    home: str
    host: str
    pid: int
    workers: int
    lanes: int
    version: str
    running: int
    draining: bool
    started_at: str
    renewed_at: str
    lease_until: str
    cpus: float  # what its attempts may hold at a time, and what is held
    mem: int
    gpus: float
    cpus_held: float
    mem_held: int
    gpus_held: float
    allowed: int  # attempts that it runs at most now
    short_of: str | None  # memory or cpu, for lack of which it runs fewer


class Stats(TypedDict):
    """Tasks by state; ended ones since the store was made."""

    states: dict[str, int]
    priorities: dict[str, dict[str, int]]
    queued: int
    running: int
    submitted: int
    retried: int
    paused: bool


class Health(TypedDict, total=False):
    """All but `status` only for those who show the token."""

    status: str
    version: str
    database: str
    problem: str
    nodes: int
    short_nodes: int  # that run fewer for lack of memory or processors
    queue_files: int
    completed_files: int
    queued: int
    running: int


class Explanation(TypedDict):
    """Why a task does not run."""

    id: str
    status: str
    why: str  # ended, running, blocked, backoff, delayed, paused, no_node, claimed, too_large, resources, behind, next
    message: str  # a line for people
    waiting_for: list[Accepted]
    ahead: int | None
    ahead_is_more: bool
    due_at: str | None
    node: str | None
    paused: bool
    nodes: int
    workers: int
    running: int
    asks_for: str | None  # beside a worker


class Token(TypedDict):
    """A bearer token, without its secret."""

    name: str
    scope: str  # read, submit, admin
    created_at: str


class NewToken(Token):
    """The one time that the secret is shown."""

    token: str


# For classes that have a method `list`, where the builtin is out of sight.
Acceptances = list[Accepted]
Nodes = list[Node]
Tokens = list[Token]
