"""`scheduler run`: a node."""

from __future__ import annotations

import signal
from typing import Any

import click

from pysched import logs, settings
from pysched.cli import debugging, options
from pysched.cli.lifeline import follow_parent
from pysched.node import Node


@click.command("run")
@options.node
@options.home
@options.database
@options.parent
def command(parent_pid: int | None, **given: Any) -> None:
    """Run a node: take in .task files and queued tasks, run them, write .done files.

    TERM or ^C drains: running jobs end first; a second one stops at once and hands them back.
    """
    logs.configure(debug=debugging())
    node = Node(settings.load(**given))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.drain())
    follow_parent(parent_pid)
    node.run()
