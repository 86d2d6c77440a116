"""`scheduler reload`: load the installed version, or changed settings, without stopping jobs."""

from __future__ import annotations

import os
import signal

import click

from pysched.cli import options
from pysched.errors import NodeError
from pysched.home import Home, chosen_home


@click.command("reload")
@options.home
def command(home: str | None) -> None:
    """Start the scheduler of a home anew, with the code and settings that are there now; running jobs go on.

    Its process stays the same.  Nothing is claimed for a second or two; jobs that end meanwhile are recorded after it.
    """
    from pysched.listening import RELOAD

    owner = Home(chosen_home(home))
    pid = owner.guard_pid()
    if pid is None:
        raise NodeError(f"no scheduler runs on home {owner.path}; choose another with --home")
    descriptor = os.pidfd_open(pid)
    try:
        if owner.guard_pid() != pid:  # since it holds the lock, the pidfd is that of the guard
            raise NodeError(f"the scheduler of home {owner.path} has just been replaced; try again")
        signal.pidfd_send_signal(descriptor, RELOAD)
    finally:
        os.close(descriptor)
