"""What the OpenAPI document says: the answers as models, the task schema, problems and the token.

Routes build their answers without these models (validating what the store just gave costs more than
reading it); tests hold every answer against the document instead.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from pysched.api import problems
from pysched.api.scopes import Scope
from pysched.api.security import NDJSON_TYPES, OPEN_PATHS
from pysched.model import ID_PATTERN, State, TaskType
from pysched.task import BATCH_TASKS, Task

NAME_PATTERN = ID_PATTERN
_REF = "#/components/schemas/{model}"
_LogPath = Annotated[
    str | None, Field(description="path on the node; null also where a call in a reused worker wrote nothing")
]
_MEANINGS = {
    400: "The request is malformed",
    401: "The token is missing or wrong",
    403: "The token's scope is too small, or the request comes from a page of another origin",
    404: "There is no such thing",
    409: "The id is taken by a task with other content",
    413: "The body is too large",
    415: "The body is not JSON",
    421: "The Host is not a name of this server",
    422: "Something in the request breaks the schema; `errors` names it",
    429: "Too many wrong tokens came from this address",
    431: "The headers are too many or too large",
    503: "The database does not answer or too much waits for it; Retry-After says when to try again",
}
_ALWAYS = (400, 401, 403, 421, 429, 431)  # what every route may answer


class Accepted(BaseModel):
    id: str
    status: State


class TaskView(BaseModel):
    """A task as it stands now; times are RFC 3339 in UTC."""

    id: str
    sequence: Annotated[int, Field(description="order of arrival")]
    name: str
    type: TaskType
    priority: Literal["HIGH", "MED", "LOW"]
    rank: int
    status: State
    reason: Annotated[str | None, Field(description="why it failed or was cancelled, e.g. exit 3, timeout, user")]
    cancel_requested: bool
    waiting_for: Annotated[int, Field(description="tasks in `after` that have not succeeded yet")]
    due_at: Annotated[datetime | None, Field(description="when a scheduled task is queued")]
    failures: Annotated[int, Field(description="attempts that count against max_retries")]
    node: Annotated[str | None, Field(description="that has it now, or had it last")]
    submitted_at: datetime
    started_at: Annotated[datetime | None, Field(description="of the first attempt")]
    finished_at: datetime | None
    wait_ms: Annotated[int | None, Field(description="from submitted_at to started_at")]
    run_ms: Annotated[int | None, Field(description="of the last ended attempt, as all below")]
    exit_code: int | None
    signal: str | None
    result: Annotated[Any, Field(description="the JSON that the job left")]
    stdout: _LogPath
    stderr: _LogPath
    progress: Annotated[Any, Field(description="what a running job wrote to the file PYSCHED_PROGRESS")]


class TaskSummary(TaskView):
    attempts: Annotated[int, Field(description="how many were started")]


class Attempt(BaseModel):
    attempt: Annotated[int, Field(description="from 1")]
    node: str
    status: State
    reason: str | None
    pid: int | None
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    signal: str | None
    cpu_ms: int | None
    max_rss_kb: int | None
    stdout: _LogPath
    stderr: _LogPath


class TaskDetail(TaskView):
    attempts: list[Attempt]
    task: Annotated[Task, Field(description="as submitted, without id and defaults")]


class TaskPage(BaseModel):
    tasks: list[TaskSummary]
    next: Annotated[int | None, Field(description="give it as `before` for the next page; null on the last")]


class Need(BaseModel):
    id: str
    status: State


class Explanation(BaseModel):
    """Why a task does not run yet."""

    id: str
    status: State
    why: Annotated[
        Literal[
            "ended",
            "running",
            "blocked",
            "backoff",
            "delayed",
            "paused",
            "no_node",
            "claimed",
            "too_large",
            "resources",
            "behind",
            "next",
        ],
        Field(description="the first thing in its way"),
    ]
    message: Annotated[str, Field(description="the same for people, one line")]
    waiting_for: Annotated[list[Need], Field(description="the first tasks in `after` that have not succeeded")]
    ahead: Annotated[int, Field(description="ready tasks that come first, as far as they were counted")]
    ahead_is_more: bool
    due_at: datetime | None
    node: Annotated[str | None, Field(description="that has claimed it")]
    paused: bool
    nodes: Annotated[int, Field(description="that are alive and not draining")]
    workers: Annotated[int, Field(description="of those")]
    running: Annotated[int, Field(description="on those, a few seconds ago")]
    asks_for: Annotated[str | None, Field(description="beside a worker, for people: 2 cpus, 4.0 GiB")]


class BulkCancelled(BaseModel):
    cancelled: Annotated[int, Field(description="had not started")]
    requested: Annotated[int, Field(description="a node holds them, and ends them")]
    unchanged: Annotated[int, Field(description="had ended")]
    next: Annotated[int | None, Field(description="give it as `before` to go on; null: all is done")]


class Refusal(BaseModel):
    id: str
    message: str


class BulkRetried(BaseModel):
    retried: int
    refused: int
    errors: Annotated[list[Refusal], Field(description="the first of those refused")]
    next: Annotated[int | None, Field(description="give it as `before` to go on; null: all is done")]


class TokenRequest(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=NAME_PATTERN, description="for people: whose it is")]
    scope: Annotated[Scope, Field(strict=False, description="each includes those before it: read, submit, admin")]


class Token(BaseModel):
    name: str
    scope: Scope
    created_at: datetime


class NewToken(Token):
    token: Annotated[str, Field(description="shown this once")]


class TokenList(BaseModel):
    tokens: list[Token]


class Node(BaseModel):
    incarnation: Annotated[str, Field(description="its identity, new at every start")]
    home: str
    host: str
    pid: int
    workers: Annotated[int, Field(description="attempts it runs at once")]
    lanes: int
    version: str
    running: int
    draining: bool
    started_at: datetime
    renewed_at: datetime
    lease_until: datetime
    cpus: Annotated[float, Field(description="processors that its attempts may hold at a time")]
    mem: Annotated[int, Field(description="bytes that they may hold")]
    gpus: Annotated[float, Field(description="GPUs that they may hold, parts of one included")]
    cpus_held: Annotated[float, Field(description="by what runs; the same for the next two")]
    mem_held: int
    gpus_held: float
    allowed: Annotated[int, Field(description="attempts it runs at most now: fewer than workers while it is short")]
    short_of: Annotated[Literal["memory", "cpu"] | None, Field(description="why it runs fewer")]


class DrainedNode(BaseModel):
    incarnation: str
    draining: bool


class NodeList(BaseModel):
    nodes: list[Node]


class Stats(BaseModel):
    """Tasks by state; ended ones since the store was made."""

    states: dict[State, int]
    priorities: Annotated[dict[State, dict[Literal["HIGH", "MED", "LOW"], int]], Field(description="by state")]
    queued: int
    running: int
    submitted: int
    retried: int
    paused: bool


class QueueState(BaseModel):
    paused: bool


class Health(BaseModel):
    """All but `status` only for those who show the token; counts only while the database answers."""

    status: Literal["ok", "unavailable"]
    version: str | None = None
    database: Annotated[
        Literal["ok", "down", "unreachable", "read-only"] | None,
        Field(description="down: it says itself that it serves nobody; read-only: it takes no tasks"),
    ] = None
    problem: Annotated[str | None, Field(description="what is wrong with the database")] = None
    nodes: Annotated[int | None, Field(description="that are alive")] = None
    short_nodes: Annotated[int | None, Field(description="of those, that run fewer for lack of memory or cpus")] = None
    queue_files: Annotated[int | None, Field(description=".task files waiting in this machine's queue folder")] = None
    completed_files: Annotated[int | None, Field(description=".done files in this machine's completed folder")] = None
    queued: int | None = None
    running: int | None = None


def json_response(content: object, *, status: int = 200, background: BackgroundTask | None = None) -> Response:
    """JSON as the store gives it: its rows are plain JSON values already."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status, media_type="application/json", background=background)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents that a route may answer with, for its `responses`; 503 and what the gate says included."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="ProblemDocument")}}}
    return {
        status: {"description": _MEANINGS[status], "content": content} for status in sorted({*_ALWAYS, *statuses, 503})
    }


def one(model: str) -> dict[str, Any]:
    """The request body of a route that takes one of these and parses it itself."""
    return {"required": True, "content": {"application/json": {"schema": {"$ref": _REF.format(model=model)}}}}


def many_tasks() -> dict[str, Any]:
    """The same for a batch: an array, or a task a line."""
    array = {"type": "array", "maxItems": BATCH_TASKS, "items": {"$ref": _REF.format(model="Task")}}
    lines = {"type": "string", "description": f"one Task as a JSON object a line, at most {BATCH_TASKS}"}
    content = {"application/json": {"schema": array}, **{kind: {"schema": lines} for kind in sorted(NDJSON_TYPES)}}
    return {"required": True, "content": content}


def install(app: FastAPI) -> None:
    """Make `app.openapi` tell the truth about what FastAPI cannot see: bodies, problems and the token."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (Task, TokenRequest, problems.ProblemDocument):
        own = model.model_json_schema(ref_template=_REF, mode="validation")
        schemas.update(own.pop("$defs", {}))
        schemas[model.__name__] = own
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route here answers
        schemas.pop(unused, None)
    document["security"] = [{"token": []}]
    for path in OPEN_PATHS:
        for operation in document["paths"][path].values():
            operation["security"] = [{}, {"token": []}]
    return document
