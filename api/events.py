"""GET /events: what becomes of tasks, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response

from pysched.api import streams
from pysched.api.context import Shared
from pysched.api.feed import Batch, Feed
from pysched.api.schema import refusals
from pysched.api.scopes import Scope, needs
from pysched.changes import Position
from pysched.model import State

router = APIRouter(tags=["events"], dependencies=[needs(Scope.READ)])


@router.get(
    "/events",
    summary="Hear what becomes of tasks",
    response_class=Response,
    responses={200: streams.described("Events `ready`, `tasks` and `reset`, until the server stops"), **refusals(422)},
)
async def events(
    shared: Shared,
    status: Annotated[list[State] | None, Query(description="only tasks that are now in one of these")] = None,
    last_event_id: Annotated[str | None, Header(max_length=10_000, description="to hear what came since")] = None,
) -> Response:
    """Server-sent events.  `tasks` holds what has changed, in batches; after `reset` look again with GET /tasks."""
    return streams.stream(_events(shared.feed, frozenset(status or State), last_event_id))


async def _events(feed: Feed, states: frozenset[State], last: str | None) -> AsyncIterator[bytes]:
    subscription = await feed.subscribe()
    try:
        yield streams.event("ready", {})
        if last is not None:
            position = Position.parse(last)
            missed = Batch("", [], missed=True) if position is None else await feed.since(position)
            for text in _batch(missed, states):
                yield text
        while not subscription.ended and not feed.ended:
            batches = await subscription.next(streams.KEEPALIVE_S)
            for batch in batches:
                for text in _batch(batch, states):
                    yield text
            if not batches:
                yield streams.KEEPALIVE
    finally:
        feed.unsubscribe(subscription)


def _batch(batch: Batch, states: frozenset[State]) -> list[bytes]:
    """Its text, the same for all who listen for these states."""
    if states not in batch.texts:
        batch.texts[states] = _encoded(batch, states)
    return batch.texts[states]


def _encoded(batch: Batch, states: frozenset[State]) -> list[bytes]:
    texts = [streams.event("reset", {})] if batch.missed else []
    tasks = [task for task in batch.tasks if task["status"] in states]
    return [*texts, streams.event("tasks", {"tasks": tasks}, id=batch.id)] if tasks else texts
