"""`scheduler explain`: why a task is not running yet."""

from __future__ import annotations

import click

from pysched.cli import selectors, units
from pysched.cli.session import Session, client_command, styled
from pysched.cli.table import Cell, Column


@click.command("explain", epilog=selectors.EPILOG)
@selectors.ids_argument(several=False)
@client_command
def command(session: Session, word: str) -> None:
    """Say why a task is not running yet: what it waits for, what is ahead of it, when it is due."""
    task_id = selectors.one(session, word)
    answer = session.client.explain(task_id)
    if session.is_json:
        session.document(**answer)
        return
    if session.form == "quiet":
        click.echo(answer["why"])
        return
    session.say(answer["message"])
    if answer["due_at"] is not None:
        session.say(f"due at {units.local(answer['due_at'])}")
    if answer["waiting_for"]:
        session.say("")
        rows: list[list[Cell | str]] = [[task["id"], styled(task["status"])] for task in answer["waiting_for"]]
        session.table([Column("WAITS FOR"), Column("STATUS")], rows)
