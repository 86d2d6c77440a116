"""What the control plane needs of a store."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from pysched.errors import ConflictError, TaskError
from pysched.model import Acceptance, Priority, State, TaskType
from pysched.task import Task

Row = dict[str, Any]
Rows = list[Row]
Verdict = Acceptance | ConflictError | TaskError
Verdicts = list[Verdict]


class Backend(Protocol):
    """The part of `pysched.store.Store` that the control plane calls, always from a worker thread.

    Each method raises `StoreError` if the database does not do it, those that take an id
    `NotFoundError` for one that no task has.
    """

    def accept(self, tasks: Sequence[Task], /, *, source: uuid.UUID, atomic: bool) -> Verdicts: ...

    def get(self, task_id: str, /) -> Row: ...

    def list(
        self,
        *,
        state: State | None,
        priority: Priority | None,
        type: TaskType | None,
        limit: int,
        before: int | None,
    ) -> Rows: ...

    def cancel(self, task_id: str, /) -> State: ...

    def retry(self, task_id: str, /) -> State: ...

    def stats(self) -> Row: ...

    def nodes(self) -> Rows: ...

    def ping(self) -> None: ...

    def set_paused(self, paused: bool, /) -> None: ...

    def paused(self) -> bool: ...
