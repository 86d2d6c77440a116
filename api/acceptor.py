"""Group commit of single submissions.

Requests that arrive while a commit is under way wait together and share the next one (rule 11:
batch by arrival, not by timer).  An idle server commits the only request at once; under load the
number of requests a commit carries grows by itself.  One flush is in flight at a time::

    take ─► waiting ─ flush ─┬─► what is like most, straight from the loop (`Direct`) ─┬─ new, committed ─► verdict
                             │                                        exists, or nobody knows
                             └─► what needs other tasks, an id twice ────┴─► `Store.accept`, in a thread ─► verdict
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import structlog

from pysched.api.backend import Verdict, Verdicts
from pysched.draft import Entry
from pysched.errors import DatabaseUnreachable, PyschedError, StoreError
from pysched.model import Acceptance, State

FLUSH_TASKS = 1_000  # of one transaction: past that a commit costs little more per task, and holds others up
QUEUE_TASKS = 20_000  # waiting in all …
QUEUE_BYTES = 256 * 1024 * 1024  # … and their bodies: what a stalled database may pile up here

_log = structlog.get_logger("acceptor")


Insert = Callable[[Sequence[Entry]], Awaitable["set[str] | None"]]
Deliver = Callable[["Acceptance | PyschedError"], None]


class Acceptor:
    """Collects tasks on the event loop, to which all methods belong.

    `accept` blocks, and is called in a thread.  `insert` is `Direct.insert`; without it everything goes to `accept`.
    """

    def __init__(
        self,
        accept: Callable[[Sequence[Entry]], Verdicts],
        insert: Insert | None = None,
        *,
        queue_tasks: int = QUEUE_TASKS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._accept = accept
        self._insert = insert
        self._queue_tasks = queue_tasks
        self._queue_bytes = queue_bytes
        self._waiting: deque[tuple[Entry, int, Deliver]] = deque()
        self._bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Tasks that wait for the next commit."""
        return len(self._waiting)

    def take(self, task: Entry, size: int, deliver: Deliver) -> bool:
        """Let `deliver` be called with the verdict, after the commit; `size` is the body's, in bytes.

        The verdict is the store's yes, the task's own `ConflictError` or `TaskError`, or a `StoreError`: nobody knows.
        False, and nothing is taken, if too much is waiting or the acceptor is closed.
        """
        if self._closed or len(self._waiting) >= self._queue_tasks or self._bytes + size > self._queue_bytes:
            return False
        self._waiting.append((task, size, deliver))
        self._bytes += size
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().create_task(self._flush())
        return True

    async def accept(self, task: Entry, size: int) -> Acceptance:
        """The same for one who waits; raises what is no yes, and `asyncio.QueueFull` for what is not taken."""
        verdict: asyncio.Future[Acceptance | PyschedError] = asyncio.get_running_loop().create_future()

        def deliver(given: Acceptance | PyschedError) -> None:
            if not verdict.done():  # else its request was cancelled; the task is accepted all the same
                verdict.set_result(given)

        if not self.take(task, size, deliver):
            raise asyncio.QueueFull
        given = await verdict
        if isinstance(given, PyschedError):
            raise given
        return given

    async def close(self) -> None:
        """Take nothing more; returns when all that was taken has its verdict."""
        self._closed = True
        while self._flusher is not None:
            await asyncio.wait([self._flusher])

    async def _flush(self) -> None:
        batch: list[tuple[Entry, int, Deliver]] = []
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), FLUSH_TASKS))]
                self._bytes -= sum(size for _, size, _ in batch)
                verdicts = await self._commit([task for task, _, _ in batch])
                for (_, _, deliver), verdict in zip(batch, verdicts, strict=True):
                    deliver(verdict)
                batch = []
        finally:
            self._flusher = None
            left = [*batch, *self._waiting]  # none, unless this task was cancelled: then nobody waits for ever
            self._waiting.clear()
            for _, _, deliver in left:
                deliver(StoreError("the server stopped before it was known what became of the task; send it again"))

    async def _commit(self, tasks: Sequence[Entry]) -> Sequence[Verdict | PyschedError]:
        """One verdict a task, whatever happens; each its own error object, since each is raised elsewhere."""
        verdicts: list[Verdict | PyschedError | None] = [None] * len(tasks)
        first = {task.id: place for place, task in reversed([*enumerate(tasks)]) if not task.after}
        for task_id in await self._inserted([tasks[place] for place in sorted(first.values())]):
            place = first[task_id]
            state = State.SCHEDULED if tasks[place].delay_s > 0 else State.QUEUED
            verdicts[place] = Acceptance(id=task_id, state=state, created=True)
        left = [place for place, verdict in enumerate(verdicts) if verdict is None]
        if left:
            rest = await self._asked([tasks[place] for place in left])
            for place, verdict in zip(left, rest, strict=True):
                verdicts[place] = verdict
        return [verdict for verdict in verdicts if verdict is not None]

    async def _inserted(self, tasks: Sequence[Entry]) -> set[str]:
        """The ids of those that are known to be new and committed."""
        try:
            created = await self._insert(tasks) if self._insert is not None and tasks else None
        except Exception:
            _log.exception("insert failed", tasks=len(tasks))
            created = None
        return created or set()

    async def _asked(self, tasks: Sequence[Entry]) -> Sequence[Verdict | PyschedError]:
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
