"""`scheduler up`: everything on this machine."""

from __future__ import annotations

from typing import Any

import click

from pysched import logs, settings
from pysched.cli import debugging, options


@click.command("up")
@options.node
@options.api
@options.home
@options.database
def command(**given: Any) -> None:
    """Run everything: PostgreSQL in the home folder, a node and the HTTP API.

    TERM or ^C drains: running jobs end first; a second one stops at once and hands them back.
    """
    from pysched.home import Home
    from pysched.node import database
    from pysched.supervisor import Child, Supervisor

    logs.configure(debug=debugging())
    config = settings.load(**given)
    Home(config.home).prepare()
    environ = {f"PYSCHED_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    environ["PYSCHED_HOME"] = str(config.home.absolute())
    with database(config):
        Supervisor([Child("run", environ), Child("api", environ)]).run()
