"""/stats, /queue and /health: the whole rather than a task."""

from __future__ import annotations

import os
from pathlib import Path

import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from pysched.api.context import Context, Shared
from pysched.api.progress import fractions
from pysched.api.schema import Health, QueueState, Stats, json_response, refusals
from pysched.api.scopes import Scope, needs
from pysched.errors import DatabaseDown, DatabaseReadOnly, StoreError

_ILLS = {DatabaseReadOnly: "read-only", DatabaseDown: "down", StoreError: "unreachable"}
_PROBLEMS = {
    "read-only": "PostgreSQL takes no writes: it is a standby, or default_transaction_read_only is on",
    "down": "PostgreSQL refuses connections: it is not running, or is starting or stopping",
    "unreachable": "PostgreSQL does not answer in time, or lets nobody in",
}

_log = structlog.get_logger("health")
router = APIRouter(tags=["operations"])

_ADMIN = [needs(Scope.ADMIN)]


@router.get(
    "/stats", summary="Count tasks", response_model=Stats, responses=refusals(), dependencies=[needs(Scope.READ)]
)
def stats(shared: Shared) -> Response:
    """How many tasks are in which state, and more of that kind."""
    return json_response(shared.store.stats())


@router.get(
    "/metrics",
    summary="Measures for Prometheus",
    response_class=PlainTextResponse,
    responses=refusals(),
    dependencies=[needs(Scope.READ)],
)
def metrics(shared: Shared) -> Response:
    """In Prometheus' text format; what the store cannot say now is left out, and `pysched_database_up` is 0."""
    text = shared.metrics.text(
        shared.store,
        listeners=shared.feed.listeners,
        submissions_waiting=shared.acceptor.waiting,
        progress=fractions(shared),
    )
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post(
    "/queue/pause",
    summary="Start no further task",
    response_model=QueueState,
    responses=refusals(),
    dependencies=_ADMIN,
)
def pause(shared: Shared) -> Response:
    """Tasks are still accepted, running ones go on, and no node starts another until /queue/resume."""
    shared.store.set_paused(True)
    return json_response({"paused": True})


@router.post(
    "/queue/resume", summary="Start tasks again", response_model=QueueState, responses=refusals(), dependencies=_ADMIN
)
def resume(shared: Shared) -> Response:
    """Undo /queue/pause."""
    shared.store.set_paused(False)
    return json_response({"paused": False})


@router.get(
    "/health",
    summary="Whether work can be accepted",
    response_model=Health,
    responses={503: {"model": Health, "description": "Work cannot be accepted now"}},
)
def health(request: Request, shared: Shared) -> Response:
    """200 while work can be accepted, else 503, within seconds.  Without a token `status` is all that is said."""
    known: dict[str, object] = {}
    try:
        shared.store.ping()
        database = "ok"
        if request.state.scope is not None:
            known = _figures(shared)
    except StoreError as error:
        # The store's own words may name hosts and users: they are for the log.
        _log.warning("the database is not well", error=str(error))
        database = next(word for kind, word in _ILLS.items() if isinstance(error, kind))
        known = {"problem": _PROBLEMS[database]}
    status = "ok" if database == "ok" else "unavailable"
    answer: dict[str, object] = {"status": status}
    if request.state.scope is not None:
        answer |= {"version": request.app.version, "database": database, **_folders(shared), **known}
    return json_response(answer, status=200 if status == "ok" else 503)


def _figures(shared: Context) -> dict[str, object]:
    counts = shared.store.stats()
    nodes = shared.store.nodes()
    return {
        "nodes": len(nodes),
        "short_nodes": sum(node["short_of"] is not None for node in nodes),
        "queued": counts["queued"],
        "running": counts["running"],
    }


def _folders(shared: Context) -> dict[str, object]:
    settings = shared.settings
    queue = settings.queue or settings.mirror or settings.queue_folder
    return {
        "queue_files": _count(queue, ".task"),
        "completed_files": _count(settings.completed_folder, ".done"),
    }


def _count(folder: Path, suffix: str) -> int:
    """Files of that kind; 0 if the folder is not here, as where the node runs on another machine."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.name.endswith(suffix) and not entry.name.startswith(".") for entry in entries)
    except OSError:
        return 0
