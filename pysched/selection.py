"""Which tasks: the one filter that lists, bulk actions and the HTTP parameters share."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from pysched.model import Priority, State, TaskType


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Tasks for which everything given holds; with nothing given, all of them."""

    states: tuple[State, ...] = ()  # any of them
    priorities: tuple[Priority, ...] = ()  # any of them
    type: TaskType | None = None
    tags: tuple[str, ...] = ()  # all of them
    id: str | None = None  # how the id begins
    name: str | None = None  # how the name begins
    node: uuid.UUID | None = None  # the incarnation that has it, or had it last
    submitted_since: datetime | None = None  # [since, until), times with an offset
    submitted_until: datetime | None = None
    finished_since: datetime | None = None
    finished_until: datetime | None = None
    text: str | None = None  # in the id, the name or the content, in any case; never in `env`, which holds secrets


EVERYTHING = Selection()


class Page(NamedTuple):
    """Some of them, newest first; `next` is where to go on (None: the end)."""

    rows: list[dict[str, Any]]
    next: int | None


@dataclass(slots=True)
class Cancelled:
    """What became of a page of tasks that were to be cancelled."""

    cancelled: int = 0  # had not started
    requested: int = 0  # a node holds them, and was asked to end them
    unchanged: int = 0  # had ended
    next: int | None = None


@dataclass(slots=True)
class Retried:
    """What became of a page of tasks that were to run again."""

    retried: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)  # id, why
    next: int | None = None
