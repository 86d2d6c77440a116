"""`scheduler wait`: until tasks have ended."""

from __future__ import annotations

import click

from pysched.cli import selectors, watching
from pysched.cli.session import Session, client_command
from pysched.cli.units import DURATION


@click.command("wait", epilog=selectors.EPILOG)
@selectors.ids_argument(required=False)
@click.option("--all", "everything", is_flag=True, help="Until nothing is left to do.")
@click.option("-T", "--timeout", "timeout_s", type=DURATION, help="Give up after this, with exit code 124.")
@client_command
def command(session: Session, words: tuple[str, ...], everything: bool, timeout_s: float | None) -> int:
    """Wait until tasks have ended; exits with the exit code of the first that did not succeed, else 0.

    A signal counts as 128 and its number, a task's own timeout as 124, whatever else as 1.
    """
    if everything or words == ("all",):
        if words and words != ("all",):
            raise click.UsageError("--all waits for every task; leave out the ids")
        return watching.wait_for_all(session, timeout_s)
    if not words:
        raise click.UsageError("nothing to wait for; name a task, last, or --all")
    ids = selectors.expand(session, selectors.select(session, words))
    return watching.wait(session, ids, timeout_s=timeout_s)
