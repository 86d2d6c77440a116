"""`scheduler up`: everything on this machine."""

from __future__ import annotations

from typing import Any

import click

from pysched.cli import guarding, options


@click.command("up")
@options.node
@options.api
@options.home
@options.database
def command(**given: Any) -> int:
    """Run everything: PostgreSQL in the home folder, a node and the HTTP API.

    TERM or ^C drains: running jobs end first; a second one stops at once and hands them back.
    """
    return guarding.keep(["run", "api"], given)
