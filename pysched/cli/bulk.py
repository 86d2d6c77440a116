"""What `cancel` and `retry` share: one by one for ids, in bulk for filters, and asking before much is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from pysched.cli.selectors import Selection
from pysched.cli.session import Session
from pysched.client.results import Accepted
from pysched.errors import InputError, NotFoundError, PyschedError

_COUNTED = 1000  # looked at before asking


def confirm(session: Session, what: str, chosen: Selection, *, sure: bool) -> bool:
    """Ask whether to act on all that the filters take in; False: there are none."""
    if sure:
        return True
    page = session.client.list(limit=_COUNTED, **chosen.filters)
    count = f"{len(page.tasks)} tasks" if len(page.tasks) != 1 else "1 task"
    if page.next is not None:
        count = f"more than {len(page.tasks)} tasks" if page.tasks else "an unknown number of tasks"
    elif not page.tasks:
        return False
    if not sys.stdin.isatty():
        raise InputError(f"this would {what} {count}; say --yes if that is meant")
    if not click.confirm(f"{what} {count}?", err=True):
        raise PyschedError("not confirmed; nothing was done")
    return True


def each(session: Session, ids: list[str], act: Callable[[str], Accepted], said: Callable[[Accepted], str]) -> int:
    """Act on task after task; goes on past one that refuses, whose error decides the exit code."""
    done: list[Accepted] = []
    refused: list[dict[str, Any]] = []
    code = 0
    for task_id in ids:
        try:
            accepted = act(task_id)
        except (InputError, NotFoundError) as error:
            if len(ids) == 1:
                raise
            code = error.exit_code
            refused.append({"id": task_id, "message": str(error)})
            session.note(f"{task_id}: {error}")
            continue
        done.append(accepted)
        session.say(f"{said(accepted)} {accepted['id']}")
    if session.is_json:
        session.document(tasks=done, errors=refused)
    elif session.form == "quiet":
        session.ids(task["id"] for task in done)
    return code
