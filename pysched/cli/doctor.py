"""`scheduler doctor`: what on this machine would keep pysched from working well, and the command that mends it."""

from __future__ import annotations

import click

from pysched.cli import options
from pysched.cli.session import Session, client_command
from pysched.cli.table import paint

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@options.database
@click.option("--workers", type=click.IntRange(1), default=64, show_default=True, help="Attempts at once to plan for.")
@client_command
def command(session: Session, database: str | None, workers: int) -> int:
    """Check the native core, database, folders, limits, clock and token; fails if something cannot work."""
    from pysched.cli import checkup

    findings = checkup.examine(session.where, database, workers)
    worst = max((finding.level for finding in findings), key=list(_STYLES).index, default="ok")
    if session.is_json:
        session.document(
            findings=[
                {"check": each.check, "level": each.level, "found": each.found, "mend": each.mend} for each in findings
            ]
        )
    elif session.form == "quiet":
        for each in findings:
            if each.level != "ok":
                click.echo(f"{each.level} {each.check}: {each.found}")
    else:
        width = max(len(each.check) for each in findings)
        for each in findings:
            mark = paint(f"{each.level:<4}", _STYLES[each.level], colour=session.colour)
            session.say(f"{mark}  {each.check:<{width}}  {each.found}")
            if each.mend:
                session.say(f"{'':<6}{'':<{width}}  mend it: {each.mend}")
    return 1 if worst == "fail" else 0
