"""/tasks/{id}/logs: a task's output, as bytes from an offset, or followed while it comes."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse

from pysched.api import streams
from pysched.api.backend import Row, Rows
from pysched.api.context import Context, Shared
from pysched.api.schema import refusals
from pysched.api.scopes import Scope, needs
from pysched.api.tasks import TaskId
from pysched.errors import NotFoundError
from pysched.model import State

LOG_BYTES = 1024 * 1024  # in one answer
CHUNK_BYTES = 64 * 1024  # in one event

router = APIRouter(prefix="/tasks", tags=["tasks"], dependencies=[needs(Scope.READ)])

_EVENT_ID = re.compile(r"(?P<attempt>\d{1,10}):(?P<offset>\d{1,19})\Z", re.ASCII)


class LogStream(str, Enum):
    STDOUT = "stdout"
    STDERR = "stderr"


Stream = Annotated[LogStream, Query()]
Offset = Annotated[int, Query(ge=0, le=2**62, description="in bytes")]
Number = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="of the attempt; the newest one if missing")]


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
    stream: Stream = LogStream.STDOUT,
    offset: Offset = 0,
    limit: Annotated[int, Query(ge=1, le=LOG_BYTES, description="bytes at most")] = LOG_BYTES,
    attempt: Number = None,
) -> Response:
    """The bytes as the job wrote them, as inert text; also while it runs."""
    row = _attempt(shared.store.get(task_id), task_id, attempt)
    path = _path(shared, task_id, row, stream)
    data = b"" if path is None else _read_log(path, offset, limit)
    number = 0 if row is None else row["attempt"]
    headers = {"X-Next-Offset": str(offset + len(data)), "X-Attempt": str(number)}
    return Response(data, headers=headers, media_type="text/plain")


@router.get(
    "/{id}/logs/follow",
    summary="Follow a task's output",
    response_class=Response,
    responses={
        200: streams.described("Events `log` and `attempt`, at last `end`, once the task has ended and all is sent"),
        **refusals(404, 422),
    },
)
async def follow_logs(
    shared: Shared,
    task_id: TaskId,
    stream: Stream = LogStream.STDOUT,
    offset: Offset = 0,
    attempt: Number = None,
    last_event_id: Annotated[str | None, Header(max_length=100, description="to go on where a stream broke")] = None,
) -> Response:
    """Server-sent events.  Without `attempt` the newest one's output and that of those which follow it."""
    resumed = _EVENT_ID.match(last_event_id or "")
    begin = attempt
    if resumed is not None:
        begin, offset = int(resumed["attempt"]), min(int(resumed["offset"]), 2**62)
    task = await asyncio.to_thread(shared.store.get, task_id)
    row = _attempt(task, task_id, begin or None)
    number = 0 if row is None else int(row["attempt"])
    follower = _Follower(shared, task_id, stream, number=number, offset=offset, only=attempt is not None)
    return streams.stream(follower.events())


@dataclass(slots=True)
class _Follower:
    """One reader of one task's stream.

    Each round looks at the task first and reads after that: what stood in the file when the attempt had ended is all.
    """

    shared: Context
    task_id: str
    stream: LogStream
    number: int  # of the attempt that is read; 0: there is none yet
    offset: int
    only: bool  # this attempt and no other
    held: int = 0  # bytes of a character that is not whole yet

    async def events(self) -> AsyncIterator[bytes]:
        while not self.shared.feed.ended:
            standing = await asyncio.to_thread(self.shared.feed.standing, self.task_id)
            if standing is None:
                return  # deleted
            task = await asyncio.to_thread(self.shared.store.get, self.task_id)
            newest = max((int(row["attempt"]) for row in task["attempts"]), default=0)
            if self.number == 0 and newest:
                self.number = 1
                yield streams.event("attempt", {"attempt": self.number})
            row = _attempt(task, self.task_id, self.number) if self.number else None
            path = _path(self.shared, self.task_id, row, self.stream)
            if row is not None and path is not None:
                async for text in self._rest(path, final=row["finished_at"] is not None):
                    yield text
            if self.number and not self.only and newest > self.number:
                self.number, self.offset = self.number + 1, 0
                yield streams.event("attempt", {"attempt": self.number})
                continue
            ended = self._ended(task)
            if ended is not None:
                yield streams.event("end", ended)
                return
            if not await self._news(path, standing):
                yield streams.KEEPALIVE

    async def _rest(self, path: str, *, final: bool) -> AsyncIterator[bytes]:
        """All that stands in the file now; half a character at its end only if nothing comes after it."""
        self.held = 0
        while not self.shared.feed.ended:
            try:
                data = await asyncio.to_thread(_read_log, path, self.offset, CHUNK_BYTES)
            except NotFoundError:
                return  # not there yet, not on this machine, or gone: there is nothing to tell
            if not data:
                return
            whole = _whole_characters(data)
            if not whole and not final:
                self.held = len(data)
                return
            data = whole or data
            begin, self.offset = self.offset, self.offset + len(data)
            content = {"attempt": self.number, "offset": begin, "next": self.offset, **_encoded(data)}
            yield streams.event("log", content, id=f"{self.number}:{self.offset}")

    def _ended(self, task: Row) -> dict[str, Any] | None:
        """How what is followed has ended; None if it has not."""
        if self.only:
            row = _attempt(task, self.task_id, self.number)
            ended = row if row is not None and row["finished_at"] is not None else None
        else:
            ended = task if State(task["status"]).terminal else None
        return ended and {name: ended[name] for name in ("status", "reason", "exit_code")}

    async def _news(self, path: str | None, standing: tuple[str, int]) -> bool:
        """Wait for more output or another state of the task; False if there was neither for a while."""
        futures: Sequence[asyncio.Future[None]] = [self.shared.feed.change(self.task_id, standing)]
        if path is not None:
            futures = [*futures, self.shared.tails.growth(path, self.offset + self.held)]
        try:
            done, _ = await asyncio.wait(futures, timeout=streams.KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in futures:
                future.cancel()
        return bool(done)


def _attempt(task: Row, task_id: str, number: int | None) -> Row | None:
    """The attempt asked for; None if the newest is, and there is none yet."""
    attempts: Rows = task["attempts"]
    if number is None:
        return max(attempts, key=lambda row: int(row["attempt"]), default=None)
    for row in attempts:
        if row["attempt"] == number:
            return row
    raise NotFoundError(f"task {task_id} has no attempt {number}; it has {len(attempts)}")


def _path(shared: Context, task_id: str, row: Row | None, stream: LogStream) -> str | None:
    """Where an attempt writes, or has written; None where nobody knows, or it wrote nothing."""
    if row is None:
        return None
    path: str | None = row[stream.value]
    if path is None and row["exit_code"] is None and shared.log_files is not None:
        path = getattr(shared.log_files(task_id, row["attempt"]), stream.value)
    return path


def _read_log(path: str, offset: int, limit: int) -> bytes:
    """The bytes of a log file; the job itself may have put anything in its place, so only a regular file is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFoundError(f"the log is not on this machine, or gone ({error.strerror})") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotFoundError("the log is no regular file any more")
        return os.pread(descriptor, limit, offset)
    finally:
        os.close(descriptor)


def _whole_characters(data: bytes) -> bytes:
    """Without a UTF-8 character that is cut at the end: the rest of it comes with the next bytes."""
    for length in range(1, min(3, len(data)) + 1):
        last = data[-length]
        if last & 0xC0 != 0x80:  # no continuation: a character begins here, or it is ASCII
            needed = 1 if last >= 0xF8 else 4 if last >= 0xF0 else 3 if last >= 0xE0 else 2 if last >= 0xC0 else 1
            return data[:-length] if needed > length else data
    return data


def _encoded(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
