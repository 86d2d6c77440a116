"""`scheduler retry`: run ended tasks again."""

from __future__ import annotations

import difflib
import json
import sys
from typing import Any

import click

from pysched.cli import bulk, recent, selectors
from pysched.cli.session import Session, client_command
from pysched.cli.table import paint
from pysched.errors import InputError, PyschedError


@click.command("retry", epilog=selectors.EPILOG)
@selectors.ids_argument(required=False)
@click.option("--failed", is_flag=True, help="All that failed.")
@click.option("--edit", is_flag=True, help="Change a task in an editor and submit it as a new one.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@client_command
def command(session: Session, words: tuple[str, ...], failed: bool, edit: bool, yes: bool) -> int:
    """Run failed or cancelled tasks again, with their retries anew."""
    if failed:
        words = (*words, "status=failed")
    if not words:
        raise click.UsageError("nothing to retry; name a task, filters, or --failed")
    if edit:
        if len(words) != 1:
            raise click.UsageError("--edit changes one task; name one")
        return _edit(session, selectors.one(session, words[0]), sure=yes)
    chosen = selectors.select(session, words, everything={"status": ["failed", "cancelled"]})
    if chosen.ids is not None:
        return bulk.each(session, chosen.ids, session.client.retry, lambda task: "runs again:")
    if not bulk.confirm(session, "retry", chosen, sure=yes):
        totals: dict[str, Any] = {"retried": 0, "refused": 0, "errors": []}
    else:
        totals = session.client.retry_all(**chosen.filters)
    if session.is_json:
        session.document(**totals)
    for refusal in totals["errors"][:20]:
        session.note(f"{refusal['id']}: {refusal['message']}")
    more = f", {totals['refused']} cannot" if totals["refused"] else ""
    session.say(f"{totals['retried']} run again{more}")
    return 1 if totals["refused"] else 0


def _edit(session: Session, task_id: str, *, sure: bool) -> int:
    """An ended task stays as it was recorded: what was changed is a new task."""
    spec = session.client.get(task_id)["task"]
    hidden = [name for name, value in spec.get("env", {}).items() if "***" in value]
    if hidden:
        raise InputError(
            f"env.{hidden[0]} of {task_id} is a secret that the server does not show; submit the task anew instead"
        )
    before = json.dumps(spec, indent=2, ensure_ascii=False) + "\n"
    text = before
    while True:
        edited = click.edit(text, extension=".json")
        if edited is None or edited == before:
            session.note("nothing was changed, nothing was submitted")
            return 0
        text = edited
        try:
            changed = json.loads(edited)
        except ValueError as error:
            session.note(f"that is no JSON: {error}")
        else:
            if isinstance(changed, dict):
                break
            session.note("that is no JSON object")
        if not sys.stdin.isatty() or not click.confirm("edit it again?", default=True, err=True):
            raise InputError("what was edited is no JSON object; nothing was submitted")
    for line in difflib.unified_diff(before.splitlines(), text.splitlines(), "before", "after", lineterm=""):
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        session.note(paint(line, style, colour=session.colour))
    if not sure and sys.stdin.isatty() and not click.confirm("submit this as a new task?", default=True, err=True):
        raise PyschedError("not confirmed; nothing was submitted")
    accepted = session.client.submit({**changed, "id": None})
    recent.remember(session.client.url, "submitted", [accepted["id"]])
    if session.is_json:
        session.document(submitted=[accepted["id"]])
    elif session.form == "quiet":
        session.ids([accepted["id"]])
    session.say(f"submitted {accepted['id']}")
    return 0
