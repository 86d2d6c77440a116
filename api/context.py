"""What the routes share, made once by `create_app`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from pysched.api.acceptor import Acceptor
from pysched.api.backend import Backend
from pysched.api.feed import Feed
from pysched.api.keyring import Keyring
from pysched.api.metrics import Metrics
from pysched.api.mirror import Mirror
from pysched.api.tails import Tails
from pysched.settings import Settings

CONCURRENT_BATCHES = 4  # each may hold 256 MiB of body while it is read


class LogFiles(Protocol):
    """Paths of one attempt's output."""

    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def progress(self) -> str: ...


FindLogs = Callable[[str, int], LogFiles]  # (task id, attempt) → where a node with this home writes its output


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    store: Backend
    settings: Settings
    acceptor: Acceptor
    mirror: Mirror | None
    log_files: FindLogs | None  # for attempts that still run: the store learns their paths when they end
    source: uuid.UUID  # of this process's submissions
    keyring: Keyring
    feed: Feed
    metrics: Metrics
    tails: Tails = field(default_factory=Tails)
    batches: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENT_BATCHES))

    def end_streams(self) -> None:
        """Let every answer that would go on for ever end now, on the event loop: the server stops."""
        self.feed.end()
        self.tails.end()


async def context(request: Request) -> Context:  # not blocking, so not worth the thread that a plain function gets
    return cast("Context", request.app.state.context)


Shared = Annotated[Context, Depends(context)]
