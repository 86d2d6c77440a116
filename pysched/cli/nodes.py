"""`scheduler nodes`: who does the work."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from pysched.cli import units
from pysched.cli.screen import standing
from pysched.cli.session import Session, client_command
from pysched.cli.table import Cell, Column
from pysched.errors import InputError, NotFoundError

_COLUMNS = [
    Column("NODE"), Column("HOST", shrinks=True), Column("PID", right=True), Column("RUNNING", right=True),
    Column("WORKERS", right=True), Column("LANES", right=True), Column("CPUS", right=True), Column("MEM", right=True),
    Column("GPUS", right=True), Column("UP", right=True), Column("VERSION"),
    Column("STATE"),
]  # fmt: skip


@click.command("nodes")
@click.option("--drain", metavar="NODE", help="Let this node take no further task; its id or the beginning of it.")
@client_command
def command(session: Session, drain: str | None) -> None:
    """List the running nodes, or drain one: what it runs ends, nothing new starts there."""
    nodes = session.client.nodes()
    if drain is not None:
        fitting = [node["incarnation"] for node in nodes if node["incarnation"].startswith(drain.lower())]
        if not fitting:
            known = ", ".join(node["incarnation"][:8] for node in nodes) or "none"
            raise NotFoundError(f"{drain}: no running node begins so; there are {known}")
        if len(fitting) > 1:
            raise InputError(f"{drain}: begins more than one node ({', '.join(fitting)}); write more of it")
        answer = session.client.drain(fitting[0])
        if session.is_json:
            session.document(**answer)
        elif session.form == "quiet":
            session.ids(fitting)
        session.say(f"{fitting[0]} takes no further task")
        return
    if session.is_json:
        session.document(nodes=nodes)
        return
    if session.form == "quiet":
        session.ids(node["incarnation"] for node in nodes)
        return
    if not nodes:
        session.note("no node is running; start one: scheduler up, or scheduler run on another machine")
        return
    now = datetime.now(timezone.utc)
    rows: list[list[Cell | str]] = [
        [
            node["incarnation"] if session.width is None else node["incarnation"][:8],
            node["host"],
            str(node["pid"]),
            str(node["running"]),
            str(node["workers"]) if units.short_of(node) is None else f"{units.allowed(node)} of {node['workers']}",
            str(node["lanes"]),
            *units.resources(node),
            units.duration(max(0.0, (now - units.moment(node["started_at"])).total_seconds())),
            node["version"],
            standing(node),
        ]
        for node in nodes
    ]
    session.table(_COLUMNS, rows)
