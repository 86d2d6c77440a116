"""`scheduler plot`: pictures of a profile."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click


@click.command("plot")
@click.argument("csv", required=False, type=click.Path(path_type=Path))
@click.option("--home", type=click.Path(path_type=Path), envvar="PYSCHED_HOME", help="Home whose profile is drawn.")
@click.option("--html", type=click.Path(path_type=Path), help="Where the page goes; beside the CSV by default.")
@click.option("--terminal", is_flag=True, help="Draw in the terminal only, write no page.")
def command(csv: Path | None, home: Path | None, html: Path | None, terminal: bool) -> None:
    """Draw a node's profiler.csv in the terminal, and as an HTML page that needs no network.

    CSV is the file to draw; without it, the one in the home is drawn.
    """
    if terminal and html is not None:
        raise click.UsageError("--terminal writes no page; leave it out, or leave out --html")

    from pysched import plot
    from pysched.home import Home, default_home

    source = csv or Home(home or default_home()).profile
    profile = plot.read(source)
    width = min(shutil.get_terminal_size().columns, 120)
    click.echo(plot.terminal(profile, width=max(40, width), colour=sys.stdout.isatty() and not _no_colour()))
    if not terminal:
        page = html or source.with_suffix(".html")
        plot.write_html(profile, page)
        click.echo(page.absolute())


def _no_colour() -> bool:
    """The user asked for none (no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))
