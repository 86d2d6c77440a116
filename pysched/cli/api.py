"""`scheduler api`: the control plane alone."""

from __future__ import annotations

import time
from typing import Any

import click

from pysched import logs, settings
from pysched.cli import debugging, options
from pysched.cli.lifeline import follow_parent


@click.command("api")
@options.api
@options.home
@options.database
@options.parent
@options.place
def command(parent_pid: int | None, place: str | None, **given: Any) -> None:
    """Serve the HTTP API: accept tasks, show them, cancel them.  A node elsewhere runs them."""
    from pysched.api.security import check_exposure
    from pysched.api.server import serve
    from pysched.executors.files import LogFolder
    from pysched.home import Home
    from pysched.incarnation import database
    from pysched.listening import Place
    from pysched.store.opening import opened

    logs.configure(debug=debugging())
    config = settings.load(**given)
    if config.no_auth:
        check_exposure(config.host, None, no_auth=True)  # before a database is started for nothing
    kept = None if place is None else Place.from_text(place)
    home = Home(config.home)
    home.prepare()
    follow_parent(parent_pid)
    with database(config) as url, opened(url, _wait) as store:
        if store is not None:
            serve(store, config, log_files=LogFolder(home.logs).of, place=kept)


def _wait(seconds: float) -> bool:
    """Never gives up: a signal ends the process."""
    time.sleep(seconds)
    return False
