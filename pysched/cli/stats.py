"""`scheduler stats`: how many tasks stand where."""

from __future__ import annotations

import click

from pysched.cli.session import Session, client_command, styled
from pysched.cli.table import Cell, Column
from pysched.states import Priority, State


@click.command("stats")
@client_command
def command(session: Session) -> None:
    """Count tasks by state and priority; ended ones since the store was made."""
    stats = session.client.stats()
    if session.is_json:
        session.document(**stats)
        return
    if session.form == "quiet":
        for state in State:
            click.echo(f"{state.value} {stats['states'].get(state.value, 0)}")
        return
    names = [priority.name for priority in Priority]
    columns = [Column("STATUS"), *(Column(name, right=True) for name in names), Column("ALL", right=True)]
    rows: list[list[Cell | str]] = []
    for state in State:
        counts = stats["priorities"].get(state.value, {})
        own = [counts.get(name, 0) for name in names]
        rows.append([styled(state.value), *(_number(count) for count in own), _number(sum(own))])
    session.table(columns, rows)
    session.say(f"\n{stats['submitted']:,} submitted, {stats['retried']:,} attempts were retries")
    if stats["paused"]:
        session.say("the queue is paused: nothing starts; scheduler queue resume", "yellow")


def _number(count: int) -> Cell:
    return Cell(f"{count:,}", "" if count else "dim")
