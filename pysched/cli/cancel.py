"""`scheduler cancel`: stop tasks, or keep them from starting."""

from __future__ import annotations

import click

from pysched.cli import bulk, selectors
from pysched.cli.session import Session, client_command
from pysched.client.results import Accepted
from pysched.states import State

_OPEN = ["blocked", "scheduled", "queued", "running"]


@click.command("cancel", epilog=selectors.EPILOG)
@selectors.ids_argument()
@click.option("-y", "--yes", is_flag=True, help="Do not ask, though filters or all are given.")
@client_command
def command(session: Session, words: tuple[str, ...], yes: bool) -> int:
    """Cancel tasks: TERM to the whole tree of what runs, KILL after its grace; what waits never starts."""
    chosen = selectors.select(session, words, everything={"status": _OPEN})
    if chosen.ids is not None:
        return bulk.each(session, chosen.ids, session.client.cancel, _said)
    if not bulk.confirm(session, "cancel", chosen, sure=yes):
        totals = {"cancelled": 0, "requested": 0, "unchanged": 0}
    else:
        totals = session.client.cancel_all(**chosen.filters)
    if session.is_json:
        session.document(**totals)
    session.say(
        f"{totals['cancelled']} cancelled, {totals['requested']} being stopped, {totals['unchanged']} had ended before"
    )
    return 0


def _said(task: Accepted) -> str:
    if task["status"] == "cancelled":
        return "cancelled"
    # A node has it, also where it is still queued: it ends there.
    return f"has {task['status']} already:" if State(task["status"]).terminal else "stopping"
