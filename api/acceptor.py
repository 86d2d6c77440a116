"""Group commit of single submissions.

Requests that arrive while a commit is under way wait together and share the next one (rule 11:
batch by arrival, not by timer).  An idle server commits the only request at once; under load the
number of requests a commit carries grows by itself.  One flush is in flight at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from pysched.api.backend import Verdict, Verdicts
from pysched.errors import DatabaseUnreachable, PyschedError, StoreError
from pysched.model import Acceptance
from pysched.task import Task

FLUSH_TASKS = 1_000  # of one transaction: past that a commit costs little more per task, and holds others up
QUEUE_TASKS = 20_000  # waiting in all …
QUEUE_BYTES = 256 * 1024 * 1024  # … and their bodies: what a stalled database may pile up here

_log = structlog.get_logger("acceptor")


class Acceptor:
    """Collects tasks from the event loop and gives them to `accept`, which blocks, in a thread.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        accept: Callable[[Sequence[Task]], Verdicts],
        *,
        queue_tasks: int = QUEUE_TASKS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._accept = accept
        self._queue_tasks = queue_tasks
        self._queue_bytes = queue_bytes
        self._waiting: deque[tuple[Task, int, asyncio.Future[Acceptance]]] = deque()
        self._bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Tasks that wait for the next commit."""
        return len(self._waiting)

    async def accept(self, task: Task, size: int) -> Acceptance:
        """The store's yes, after its commit; `size` is the body's, in bytes.

        Raises the task's own `ConflictError` or `TaskError`, `StoreError` if the commit failed, and
        `asyncio.QueueFull` if too much is waiting or the acceptor is closed.
        """
        if self._closed or len(self._waiting) >= self._queue_tasks or self._bytes + size > self._queue_bytes:
            raise asyncio.QueueFull
        future: asyncio.Future[Acceptance] = asyncio.get_running_loop().create_future()
        self._waiting.append((task, size, future))
        self._bytes += size
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return await future

    async def close(self) -> None:
        """Take nothing more; returns when all that was taken has its verdict."""
        self._closed = True
        while self._flusher is not None:
            await asyncio.wait([self._flusher])

    async def _flush(self) -> None:
        batch: list[tuple[Task, int, asyncio.Future[Acceptance]]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), FLUSH_TASKS))]
                self._bytes -= sum(size for _, size, _ in batch)
                verdicts = await self._commit([task for task, _, _ in batch])
                for (_, _, future), verdict in zip(batch, verdicts, strict=True):
                    if future.done():
                        continue  # its request was cancelled; the task is accepted all the same
                    if isinstance(verdict, Acceptance):
                        future.set_result(verdict)
                    else:
                        future.set_exception(verdict)
        finally:
            self._flusher = None
            for _, _, future in (*batch, *self._waiting):
                future.cancel()  # no effect on those that are done; if this task is cancelled, nobody waits for ever
            self._waiting.clear()

    async def _commit(self, tasks: Sequence[Task]) -> Sequence[Verdict | PyschedError]:
        """One verdict a task, whatever happens; each its own error object, since each is raised elsewhere."""
        try:
            verdicts = await asyncio.to_thread(self._accept, tasks)
            if len(verdicts) != len(tasks):
                raise StoreError(f"{len(verdicts)} verdicts for {len(tasks)} tasks")
        except DatabaseUnreachable as error:
            text = str(error)
            return [DatabaseUnreachable(text) for _ in tasks]
        except Exception as error:
            _log.exception("commit failed", tasks=len(tasks))
            text = str(error)
            return [StoreError(text) for _ in tasks]
        return verdicts
