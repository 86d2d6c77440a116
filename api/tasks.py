"""/tasks: what stands where, its logs, and changing its course."""

from __future__ import annotations

import os
import stat
from enum import Enum
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import PlainTextResponse
from pydantic import BeforeValidator

from pysched.api.backend import Row, Rows
from pysched.api.context import Shared
from pysched.api.schema import Accepted, TaskDetail, TaskPage, json_response, refusals
from pysched.errors import NotFoundError
from pysched.model import ID_PATTERN, Priority, State, TaskType

PAGE_TASKS = 1_000
LOG_BYTES = 1024 * 1024  # in one answer

router = APIRouter(prefix="/tasks", tags=["tasks"])

TaskId = Annotated[str, Path(alias="id", pattern=ID_PATTERN, description="of the task")]
PriorityName = Annotated[
    Literal["HIGH", "MED", "LOW"], BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)
]


class LogStream(str, Enum):
    STDOUT = "stdout"
    STDERR = "stderr"


@router.get("", summary="List tasks", response_model=TaskPage, responses=refusals(422))
def list_tasks(
    shared: Shared,
    status: Annotated[State | None, Query()] = None,
    priority: Annotated[PriorityName | None, Query(description="in any case")] = None,
    type: Annotated[TaskType | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE_TASKS)] = 100,
    before: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="`next` of the page before")] = None,
) -> Response:
    """A page of tasks, newest first.  Pages never skip or repeat a task, whatever arrives meanwhile."""
    rows = shared.store.list(
        state=status, priority=None if priority is None else Priority[priority], type=type, limit=limit, before=before
    )
    following = rows[-1]["sequence"] if len(rows) == limit else None
    return json_response({"tasks": rows, "next": following})


@router.get("/{id}", summary="Show a task", response_model=TaskDetail, responses=refusals(404, 422))
def get_task(shared: Shared, task_id: TaskId) -> Response:
    """A task with all its attempts."""
    return json_response(shared.store.get(task_id))


@router.get(
    "/{id}/logs",
    summary="Read a task's output",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": f"At most {LOG_BYTES} bytes from `offset`; empty where nothing stands yet",
            "headers": {
                "X-Next-Offset": {"description": "what to ask for next", "schema": {"type": "integer"}},
                "X-Attempt": {"description": "whose output this is; 0 before the first", "schema": {"type": "integer"}},
            },
        },
        **refusals(404, 422),
    },
)
def get_logs(
    shared: Shared,
    task_id: TaskId,
    stream: Annotated[LogStream, Query()] = LogStream.STDOUT,
    offset: Annotated[int, Query(ge=0, le=2**62, description="in bytes")] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="the newest one if missing")] = None,
) -> Response:
    """The bytes as the job wrote them, as inert text; also while it runs."""
    row = _attempt(shared.store.get(task_id), task_id, attempt)
    number: int = 0 if row is None else row["attempt"]
    path = None if row is None else row[stream.value]
    if path is None and row is not None and shared.log_files is not None:
        path = getattr(shared.log_files(task_id, number), stream.value)
    data = b"" if path is None else _read_log(path, offset)
    headers = {"X-Next-Offset": str(offset + len(data)), "X-Attempt": str(number)}
    return Response(data, headers=headers, media_type="text/plain")


@router.post("/{id}/cancel", summary="Cancel a task", response_model=Accepted, responses=refusals(404, 422))
def cancel_task(shared: Shared, task_id: TaskId) -> Response:
    """Cancel a task.  A running one still says `running` until its processes are gone; an ended one stays as it is."""
    return json_response({"id": task_id, "status": shared.store.cancel(task_id).value})


@router.post("/{id}/retry", summary="Run a task again", response_model=Accepted, responses=refusals(404, 422))
def retry_task(shared: Shared, task_id: TaskId) -> Response:
    """Run a failed or cancelled task again, with its retries anew."""
    return json_response({"id": task_id, "status": shared.store.retry(task_id).value})


def _attempt(task: Row, task_id: str, number: int | None) -> Row | None:
    """The attempt asked for; None if the newest is, and there is none yet."""
    attempts: Rows = task["attempts"]
    if number is None:
        return max(attempts, key=lambda row: int(row["attempt"]), default=None)
    for row in attempts:
        if row["attempt"] == number:
            return row
    raise NotFoundError(f"task {task_id} has no attempt {number}; it has {len(attempts)}")


def _read_log(path: str, offset: int) -> bytes:
    """The bytes of a log file; the job itself may have put anything in its place, so only a regular file is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"the log is not on this machine, or gone ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotFoundError("the log is no regular file any more")
        return os.pread(descriptor, LOG_BYTES, offset)
    finally:
        os.close(descriptor)
