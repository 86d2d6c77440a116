"""/tasks: what stands where and why, and changing its course, one by one or many at once."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from pysched.api.backend import Row
from pysched.api.context import Context, Shared
from pysched.api.filters import Before, Chosen, Filter
from pysched.api.masking import masked
from pysched.api.progress import progress_of
from pysched.api.schema import (
    Accepted,
    BulkCancelled,
    BulkRetried,
    Explanation,
    TaskDetail,
    TaskPage,
    json_response,
    refusals,
)
from pysched.api.scopes import Scope, needs
from pysched.errors import NotFoundError
from pysched.model import ID_PATTERN, State

PAGE_TASKS = 1_000
WAIT_S = 60.0
ERRORS_SHOWN = 100  # of a bulk action

router = APIRouter(prefix="/tasks", tags=["tasks"])

TaskId = Annotated[str, Path(alias="id", pattern=ID_PATTERN, description="of the task")]
_READ = [needs(Scope.READ)]
_SUBMIT = [needs(Scope.SUBMIT)]
_BULK: dict[str, Any] = {"responses": refusals(422), "dependencies": _SUBMIT}
Limit = Annotated[int, Query(ge=1, le=PAGE_TASKS)]


@router.get("", summary="List tasks", response_model=TaskPage, responses=refusals(422), dependencies=_READ)
def list_tasks(shared: Shared, selection: Filter, limit: Limit = 100, before: Before = None) -> Response:
    """A page of tasks, newest first.  Pages never skip or repeat a task, whatever arrives meanwhile.

    A page may hold fewer tasks than `limit`, even none, while `next` is not null: a request looks at a bounded number.
    """
    rows, following = shared.store.page(selection, limit=limit, before=before)
    for row in rows:
        row["progress"] = progress_of(shared, row, row["attempts"])
    return json_response({"tasks": rows, "next": following})


@router.post("/cancel", summary="Cancel many tasks", response_model=BulkCancelled, **_BULK)
def cancel_tasks(shared: Shared, selection: Chosen, limit: Limit = PAGE_TASKS, before: Before = None) -> Response:
    """Cancel a page of what a filter selects; go on with `before` until `next` is null."""
    done = shared.store.cancel_many(selection, limit=limit, before=before)
    return json_response(
        {"cancelled": done.cancelled, "requested": done.requested, "unchanged": done.unchanged, "next": done.next}
    )


@router.post("/retry", summary="Run many tasks again", response_model=BulkRetried, **_BULK)
def retry_tasks(shared: Shared, selection: Chosen, limit: Limit = PAGE_TASKS, before: Before = None) -> Response:
    """Run a page of what a filter selects again, older ones first; go on with `before` until `next` is null."""
    done = shared.store.retry_many(selection, limit=limit, before=before)
    return json_response(
        {
            "retried": done.retried,
            "refused": len(done.refused),
            "errors": [{"id": task_id, "message": message} for task_id, message in done.refused[:ERRORS_SHOWN]],
            "next": done.next,
        }
    )


@router.get("/{id}", summary="Show a task", response_model=TaskDetail, responses=refusals(404, 422), dependencies=_READ)
async def get_task(
    shared: Shared,
    task_id: TaskId,
    wait: Annotated[float, Query(ge=0, le=WAIT_S, description="seconds for it to end; then it is shown as it is")] = 0,
) -> Response:
    """A task with all its attempts; with `wait` as soon as it has ended, or when the time is over."""
    if wait > 0:
        await _await_end(shared, task_id, wait)
    return json_response(await asyncio.to_thread(_detail, shared, task_id))


def _detail(shared: Context, task_id: str) -> Row:
    task = shared.store.get(task_id)
    attempts = task["attempts"]
    return {**masked(task), "progress": progress_of(shared, task, attempts[-1]["attempt"] if attempts else 0)}


@router.get(
    "/{id}/explain",
    summary="Say why a task does not run",
    response_model=Explanation,
    responses=refusals(404, 422),
    dependencies=_READ,
)
def explain_task(shared: Shared, task_id: TaskId) -> Response:
    """What stands in its way: other tasks, its own delay, no worker, a paused queue."""
    return json_response(shared.store.explain(task_id))


@router.post(
    "/{id}/cancel",
    summary="Cancel a task",
    response_model=Accepted,
    responses=refusals(404, 422),
    dependencies=_SUBMIT,
)
def cancel_task(shared: Shared, task_id: TaskId) -> Response:
    """Cancel a task.  A running one still says `running` until its processes are gone; an ended one stays as it is."""
    return json_response({"id": task_id, "status": shared.store.cancel(task_id).value})


@router.post(
    "/{id}/retry",
    summary="Run a task again",
    response_model=Accepted,
    responses=refusals(404, 422),
    dependencies=_SUBMIT,
)
def retry_task(shared: Shared, task_id: TaskId) -> Response:
    """Run a failed or cancelled task again, with its retries anew."""
    return json_response({"id": task_id, "status": shared.store.retry(task_id).value})


async def _await_end(shared: Context, task_id: str, seconds: float) -> None:
    """Until the task has ended, the time is over or the server stops."""
    deadline = time.monotonic() + seconds
    while not shared.feed.ended:
        standing = await asyncio.to_thread(shared.feed.standing, task_id)
        if standing is None:
            raise NotFoundError(f"there is no task {task_id}")
        left_s = deadline - time.monotonic()
        if State(standing[0]).terminal or left_s <= 0:
            return
        change = shared.feed.change(task_id, standing)
        await asyncio.wait([change], timeout=left_s)
        change.cancel()
