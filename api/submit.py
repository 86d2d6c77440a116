"""POST /submit and POST /submit/batch: tasks in.

An answer of 2xx is sent after the commit, never before (rule 2).  The id is the idempotency key: the same
task sent again is answered 200 with its state now.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from pysched.api import bodies, problems
from pysched.api.backend import Verdicts
from pysched.api.context import Context, Shared
from pysched.api.schema import Accepted, json_response, many_tasks, one, refusals
from pysched.api.scopes import Scope as Access
from pysched.api.scopes import needs
from pysched.api.security import JSON_TYPE, NDJSON_TYPES, media_type
from pysched.errors import ConflictError, Problem, TaskError
from pysched.model import Acceptance
from pysched.task import BATCH_TASKS, Task, parse_task, parse_tasks

SUBMIT_BYTES = 1024 * 1024
BATCH_BYTES = 256 * 1024 * 1024
ERRORS_SHOWN = 100  # of a batch: enough to mend it, and no answer as long as the batch

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
    task = parse_task(body).identified()
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
    async with shared.batches:
        tasks = await _read_tasks(request)
        verdicts = await asyncio.to_thread(shared.store.accept, tasks, source=shared.source, atomic=True)
    refused = _refused(verdicts)
    if refused is not None:
        return refused
    accepted = [verdict for verdict in verdicts if isinstance(verdict, Acceptance)]
    new = [task for task, verdict in zip(tasks, accepted, strict=True) if verdict.created]
    answer = {
        "created": len(new),
        "tasks": [{"id": each.id, "status": each.state.value} for each in accepted],
    }
    return json_response(answer, status=201 if new else 200, background=_mirroring(shared, new))


def _media_type(request: Request) -> str:
    stated = request.headers.get("content-type", "")
    return stated if stated == JSON_TYPE else media_type(stated)


async def _read_tasks(request: Request) -> list[Task]:
    if _media_type(request) in NDJSON_TYPES:
        return [task async for task in _parse_lines(bodies.chunks(request, BATCH_BYTES))]
    body = await bodies.read(request, BATCH_BYTES)
    tasks = await asyncio.to_thread(parse_tasks, body)
    return [task.identified() for task in tasks]


async def _parse_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[Task]:
    """Tasks from NDJSON as it arrives; blank lines are nothing.  A line is held to what one task may be."""
    count = 0
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _parse_line(line, count)
                count += 1
        if len(rest) > SUBMIT_BYTES:
            raise _too_long(count)
    if rest.strip():
        yield _parse_line(rest, count)


def _parse_line(line: bytes, index: int) -> Task:
    if index == BATCH_TASKS:
        raise TaskError(
            Problem("", f"a batch holds at most {BATCH_TASKS} tasks; send the rest in another"), index=index
        )
    if len(line) > SUBMIT_BYTES:
        raise _too_long(index)
    try:
        return parse_task(line).identified()
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
