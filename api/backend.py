"""What the control plane needs of a store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pysched.api.feed import Watcher
from pysched.draft import Entry
from pysched.errors import ConflictError, TaskError
from pysched.model import Acceptance, State
from pysched.offers import Given
from pysched.selection import Cancelled, Page, Retried, Selection

Row = dict[str, Any]
Rows = list[Row]
Verdict = Acceptance | ConflictError | TaskError
Verdicts = list[Verdict]


class Inserter(Protocol):
    """See `pysched.store.inserter.Inserter`."""

    async def insert(self, tasks: Sequence[Entry], /) -> set[str] | None: ...

    async def hand_over(
        self, tasks: Sequence[Entry], node: str, schema: int, /
    ) -> Mapping[str, Given | None] | None: ...

    async def close(self) -> None: ...


class Backend(Protocol):
    """The part of `pysched.store.Store` that the control plane calls, always from a worker thread.

    Each method raises `StoreError` if the database does not do it, those that take an id
    `NotFoundError` for one that no task has.
    """

    def accept(self, tasks: Sequence[Entry], /, *, source: uuid.UUID, atomic: bool) -> Verdicts: ...

    def accept_stream(
        self, tasks: Callable[[], Iterable[Entry]], /, *, source: uuid.UUID
    ) -> list[tuple[str, State]] | None: ...

    def inserter(self) -> Inserter: ...

    def get(self, task_id: str, /) -> Row: ...

    def page(self, selection: Selection, *, limit: int, before: int | None) -> Page: ...

    def explain(self, task_id: str, /) -> Row: ...

    def cancel(self, task_id: str, /) -> State: ...

    def retry(self, task_id: str, /) -> State: ...

    def cancel_many(self, selection: Selection, *, limit: int, before: int | None) -> Cancelled: ...

    def retry_many(self, selection: Selection, *, limit: int, before: int | None) -> Retried: ...

    def watcher(self) -> Watcher: ...

    def stats(self) -> Row: ...

    def nodes(self) -> Rows: ...

    def drain(self, incarnation: uuid.UUID, /) -> None: ...

    def ping(self) -> None: ...

    def set_paused(self, paused: bool, /) -> None: ...

    def paused(self) -> bool: ...

    def latencies(self) -> list[tuple[str, str]]: ...

    def leases(self) -> list[tuple[str, str, int, int, bool, float]]: ...

    def create_token(self, name: str, /, *, scope: str, digest: bytes) -> Row: ...

    def tokens(self) -> list[tuple[Row, bytes]]: ...

    def revoke_token(self, name: str, /) -> Row: ...
