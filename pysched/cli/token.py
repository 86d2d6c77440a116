"""`scheduler token`: who may do what."""

from __future__ import annotations

import click

from pysched.cli import Group, units
from pysched.cli.session import Session, client_command
from pysched.cli.table import Column

_SCOPES = ("read", "submit", "admin")


@click.group("token", cls=Group)
def command() -> None:
    """Make, list and revoke bearer tokens.  The administrator's own stands in HOME/token."""


@command.command("create")
@click.argument("name")
@click.option(
    "--scope", type=click.Choice(_SCOPES), default="submit", show_default=True, help="Each includes those before."
)
@client_command
def create(session: Session, name: str, scope: str) -> None:
    """Make a token and print it, this once: read looks, submit also submits and cancels, admin may all."""
    made = session.client.create_token(name, scope)
    if session.is_json:
        session.document(**made)
        return
    click.echo(made["token"])
    session.note(f"keep it now, it is not shown again; give it as PYSCHED_TOKEN or --token (scope {scope})")


@command.command("list")
@client_command
def list_(session: Session) -> None:
    """List the tokens, without what they are."""
    tokens = session.client.tokens()
    if session.is_json:
        session.document(tokens=tokens)
    elif session.form == "quiet":
        session.ids(token["name"] for token in tokens)
    elif not tokens:
        session.note("there are none but the administrator's; make one: scheduler token create NAME")
    else:
        rows = [[token["name"], token["scope"], units.local(token["created_at"])] for token in tokens]
        session.table([Column("NAME"), Column("SCOPE"), Column("CREATED")], rows)


@command.command("revoke")
@click.argument("name")
@client_command
def revoke(session: Session, name: str) -> None:
    """Let a token open nothing any more."""
    revoked = session.client.revoke_token(name)
    if session.is_json:
        session.document(**revoked)
    elif session.form == "quiet":
        session.ids([name])
    session.say(f"revoked {name}")
