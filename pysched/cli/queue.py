"""`scheduler queue`: stop and go, for all nodes."""

from __future__ import annotations

import click

from pysched.cli import Group
from pysched.cli.session import Session, client_command


@click.group("queue", cls=Group)
def command() -> None:
    """Pause or resume the start of tasks, on all nodes."""


@command.command("pause")
@client_command
def pause(session: Session) -> None:
    """Start no further task; what runs goes on, and new ones are accepted."""
    session.client.pause()
    _report(session, paused=True)


@command.command("resume")
@client_command
def resume(session: Session) -> None:
    """Start tasks again."""
    session.client.resume()
    _report(session, paused=False)


def _report(session: Session, *, paused: bool) -> None:
    if session.is_json:
        session.document(paused=paused)
    session.say("paused: nothing starts until scheduler queue resume" if paused else "resumed")
