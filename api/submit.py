"""POST /submit and POST /submit/batch: tasks in.

An answer of 2xx is sent after the commit, never before (rule 2).  The id is the idempotency key: the same
task sent again is answered 200 with its state now.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import structlog
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from pysched import trace
from pysched.api import bodies, problems
from pysched.api.backend import Verdicts
from pysched.api.context import Context, Shared
from pysched.api.schema import Accepted, json_response, many_tasks, one, refusals
from pysched.api.scopes import Scope as Access
from pysched.api.scopes import needs
from pysched.api.security import JSON_TYPE, NDJSON_TYPES, media_type
from pysched.draft import Entry, draft, drafts
from pysched.errors import ConflictError, Problem, TaskError
from pysched.model import Acceptance, State
from pysched.task import BATCH_TASKS, Task, parse_task, parse_tasks

SUBMIT_BYTES = 1024 * 1024
BATCH_BYTES = 256 * 1024 * 1024
SPOOL_BYTES = 8 * 1024 * 1024  # of a batch in memory; the rest of it lies in a temporary file
STREAMED_BYTES = 128 * 1024  # some thousand tasks: below, it does not matter how they are written
ERRORS_SHOWN = 100  # of a batch: enough to mend it, and no answer as long as the batch

E = TypeVar("E", bound=Entry)
_log = structlog.get_logger("api")
router = APIRouter(tags=["submit"], dependencies=[needs(Access.SUBMIT)])


class BatchAccepted(BaseModel):
    """The answer to a batch, in its order."""

    created: int  # how many were not known before
    tasks: list[Accepted]


@router.post(
    "/submit",
    status_code=201,
    summary="Submit a task",
    response_model=Accepted,
    responses={
        200: {"model": Accepted, "description": "The same task was accepted before"},
        **refusals(409, 413, 415, 422),
    },
    openapi_extra={"requestBody": one("Task")},
)
async def submit(request: Request, shared: Shared) -> Response:
    """Accept one task durably."""
    if _media_type(request) in NDJSON_TYPES:
        raise HTTPException(415, f"/submit takes one task; send {JSON_TYPE}, or many to /submit/batch")
    body = await bodies.read(request, SUBMIT_BYTES)
    task = parse_task(body).identified().traced(_trace(request))
    try:
        acceptance = await shared.acceptor.accept(task, len(body))
    except asyncio.QueueFull:
        raise HTTPException(503, "too many submissions wait for the database; try again") from None
    created = acceptance.created
    return json_response(
        {"id": acceptance.id, "status": acceptance.state.value},
        status=201 if created else 200,
        background=_mirroring(shared, [task] if created else []),
    )


@router.post(
    "/submit/batch",
    status_code=201,
    summary="Submit many tasks, all or none",
    response_model=BatchAccepted,
    responses={
        200: {"model": BatchAccepted, "description": "Every one of the tasks was accepted before"},
        **refusals(409, 413, 415, 422),
    },
    openapi_extra={"requestBody": many_tasks()},
)
async def submit_batch(request: Request, shared: Shared) -> Response:
    """Accept up to 100,000 tasks in one transaction: a JSON array, or one JSON object a line."""
    if shared.batches.locked():
        raise HTTPException(503, "other batches are being read; try again")
    lines = _media_type(request) in NDJSON_TYPES
    async with shared.batches:
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as body:
            await _receive(request, body)
            return await asyncio.to_thread(_accept_batch, shared, body, lines=lines, context=_trace(request))


async def _receive(request: Request, body: IO[bytes]) -> None:
    """All of it, before a transaction begins: the client may be slow."""
    try:
        async for chunk in bodies.chunks(request, BATCH_BYTES):
            body.write(chunk)
    except OSError as error:
        _log.error("no room for a batch", folder=tempfile.gettempdir(), error=str(error))
        raise HTTPException(503, "the server has no room for the batch; try again, or send it in parts") from None


def _accept_batch(shared: Context, body: IO[bytes], *, lines: bool, context: dict[str, str]) -> Response:
    """Blocks.  A long batch is accepted while it is read, unless its tasks have to be compared with what there is."""

    def read() -> Iterator[Task]:
        body.seek(0)
        tasks = _read_lines(body, _parse_line) if lines else parse_tasks(body.read())
        return (task.identified().traced(context) for task in tasks)

    def read_drafts() -> Iterator[Entry]:
        body.seek(0)
        return _read_lines(body, _draft_line) if lines else drafts(body.read())

    if body.tell() >= STREAMED_BYTES and shared.mirror is None:
        loaded = shared.store.accept_stream(read if context else read_drafts, source=shared.source)
        if loaded is not None:
            return _accepted(loaded, created=len(loaded))
    tasks = [*read()]
    verdicts = shared.store.accept(tasks, source=shared.source, atomic=True)
    refused = _refused(verdicts)
    if refused is not None:
        return refused
    accepted = [verdict for verdict in verdicts if isinstance(verdict, Acceptance)]
    new = [task for task, verdict in zip(tasks, accepted, strict=True) if verdict.created]
    answer = _accepted([(each.id, each.state) for each in accepted], created=len(new))
    answer.background = _mirroring(shared, new)
    return answer


def _accepted(tasks: list[tuple[str, State]], *, created: int) -> Response:
    """Written out: no id or state holds what JSON would escape."""
    found = ",".join([f'{{"id":"{task_id}","status":"{state.value}"}}' for task_id, state in tasks])
    text = f'{{"created":{created},"tasks":[{found}]}}'
    return Response(text, 201 if created else 200, media_type=JSON_TYPE)


def _trace(request: Request) -> dict[str, str]:
    """The trace context in the headers, of a request that has one."""
    parents = request.headers.getlist("traceparent")
    states = ",".join(request.headers.getlist("tracestate"))
    return trace.fields(parents[0], states) if len(parents) == 1 else {}


def _media_type(request: Request) -> str:
    stated = request.headers.get("content-type", "")
    return stated if stated == JSON_TYPE else media_type(stated)


def _read_lines(body: IO[bytes], read: Callable[[bytes, int], E]) -> Iterator[E]:
    """Tasks from NDJSON; blank lines are nothing.  A line is held to what one task may be."""
    count = 0
    while line := body.readline(SUBMIT_BYTES + 2):
        if len(line) > SUBMIT_BYTES and len(line.rstrip(b"\r\n")) > SUBMIT_BYTES:
            raise _too_long(count)
        if line.strip():
            if count == BATCH_TASKS:
                raise TaskError(
                    Problem("", f"a batch holds at most {BATCH_TASKS} tasks; send the rest in another"), index=count
                )
            yield read(line, count)
            count += 1


def _draft_line(line: bytes, index: int) -> Entry:
    return draft(line) or _parse_line(line, index).identified()


def _parse_line(line: bytes, index: int) -> Task:
    try:
        return parse_task(line)
    except TaskError as error:
        raise TaskError(*error.problems, index=index) from None


def _too_long(index: int) -> TaskError:
    return TaskError(Problem("", f"its line is longer than {SUBMIT_BYTES} bytes"), index=index)


def _refused(verdicts: Verdicts) -> Response | None:
    """The answer to a batch that the store did not take, naming what was wrong with which task."""
    wrong = [(index, verdict) for index, verdict in enumerate(verdicts) if not isinstance(verdict, Acceptance)]
    if not wrong:
        return None
    errors: list[dict[str, Any]] = []
    for index, verdict in wrong[:ERRORS_SHOWN]:
        found = (
            verdict.problems if isinstance(verdict, TaskError) else [Problem("id", str(verdict).removeprefix("id: "))]
        )
        errors += [{"index": index, "field": each.field, "message": each.message} for each in found]
    index, first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    if isinstance(first, ConflictError):
        return problems.problem(
            409, f"task {index}: {first}{more}; nothing was accepted", errors=errors, id=first.task_id
        )
    return problems.problem(422, f"task {index}: {first}{more}; nothing was accepted", errors=errors)


def _mirroring(shared: Context, tasks: list[Task]) -> BackgroundTask | None:
    """After the answer is sent: the client waits for the commit, not for the mirror."""
    return BackgroundTask(shared.mirror.write, tasks) if shared.mirror is not None and tasks else None
