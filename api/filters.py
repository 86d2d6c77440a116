"""The query parameters that select tasks, the same for lists and for bulk actions."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Literal

from fastapi import Depends, Query
from pydantic import AwareDatetime, BeforeValidator

from pysched.errors import Problem, TaskError
from pysched.model import ID_PATTERN, Priority, State, TaskType
from pysched.selection import EVERYTHING, Selection

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")
TEXT_PATTERN = r"^[^\u0000]+$"  # PostgreSQL holds no NUL


def _rfc3339(value: object) -> object:
    """Not what else pydantic takes for a time, as seconds since the epoch."""
    if isinstance(value, str) and not _DATE.match(value):
        raise ValueError(f"{value!r} is no time; write it as 2026-11-24T10:00:00Z")
    return value


PriorityName = Annotated[
    Literal["HIGH", "MED", "LOW"], BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)
]
Text = Annotated[str | None, Query(min_length=1, max_length=200, pattern=TEXT_PATTERN)]
Tag = Annotated[str, Query(min_length=1, max_length=200, pattern=TEXT_PATTERN)]
Time = Annotated[Annotated[AwareDatetime, BeforeValidator(_rfc3339)] | None, Query()]


async def _selection(
    status: Annotated[list[State] | None, Query(description="any of these")] = None,
    priority: Annotated[list[PriorityName] | None, Query(description="any of these, in any case")] = None,
    type: Annotated[TaskType | None, Query()] = None,
    tag: Annotated[list[Tag] | None, Query(max_length=32, description="all of these")] = None,
    id: Annotated[str | None, Query(pattern=ID_PATTERN, description="how the id begins")] = None,
    name: Annotated[Text, Query(description="how the name begins")] = None,
    node: Annotated[uuid.UUID | None, Query(description="the incarnation that has it, or had it last")] = None,
    submitted_since: Time = None,
    submitted_until: Time = None,
    finished_since: Time = None,
    finished_until: Time = None,
    text: Annotated[Text, Query(description="in the id, the name or the content but env, in any case")] = None,
) -> Selection:
    return Selection(
        states=tuple(dict.fromkeys(status or ())),
        priorities=tuple(Priority[each] for each in dict.fromkeys(priority or ())),
        type=type,
        tags=tuple(dict.fromkeys(tag or ())),
        id=id,
        name=name,
        node=node,
        submitted_since=submitted_since,
        submitted_until=submitted_until,
        finished_since=finished_since,
        finished_until=finished_until,
        text=text,
    )


Filter = Annotated[Selection, Depends(_selection)]


async def _chosen(
    selection: Filter, all: Annotated[bool, Query(description="instead of a filter")] = False
) -> Selection:
    """Nobody cancels everything by a filter that got lost on the way."""
    if (selection == EVERYTHING) != all:
        wrong = (
            "is given beside a filter; keep one"
            if all
            else "is needed for all tasks; or give a filter, as status=queued"
        )
        raise TaskError(Problem("all", wrong))
    return selection


Chosen = Annotated[Selection, Depends(_chosen)]
Before = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="`next` of the page before")]
