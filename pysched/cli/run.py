"""`scheduler run`: a node, under a guard that starts it again."""

from __future__ import annotations

import signal
from typing import Any

import click

from pysched.cli import debugging, guarding, options
from pysched.cli.lifeline import follow_parent


@click.command("run")
@options.node
@options.home
@options.database
@options.parent
@options.guard
def command(parent_pid: int | None, guard: str | None, guard_state: str | None, **given: Any) -> int:
    """Run a node: take in .task files and queued tasks, run them, write .done files.

    TERM or ^C drains: running jobs end first; a second one stops at once and hands them back.
    """
    if guard is None:
        return guarding.keep(["run"], guard_state, given)

    from pysched import logs, settings
    from pysched.guard import RELOAD, Link
    from pysched.node import Node

    logs.configure(debug=debugging())
    node = Node(settings.load(**given), Link.from_text(guard))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.drain())
    signal.signal(RELOAD, lambda *_: node.hand_over())
    follow_parent(parent_pid)
    return node.run()
