"""What a client command works with: the server, and where its answer goes in which form."""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pysched.cli import options, table
from pysched.cli.table import Cell, Column

if TYPE_CHECKING:
    from pysched.client import Client

SCHEMA_VERSION = 1  # of what `-o json` prints; a change that breaks readers makes it one more
FORMS = ("table", "json", "quiet")


class Session:
    """One run of a client command."""

    def __init__(self, *, url: str | None, token: str | None, home: Path | None, form: str) -> None:
        self.where: dict[str, Any] = {"url": url, "token": token, "home": home}
        self.form = form
        self.on_terminal = sys.stdout.isatty()
        self.colour = self.on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @functools.cached_property
    def client(self) -> Client:
        from pysched.client import Client

        return Client(**self.where)

    def close(self) -> None:
        if "client" in vars(self):  # it was asked for
            self.client.close()

    @property
    def width(self) -> int | None:
        """Of the terminal; None where the output goes elsewhere and is not to be cut."""
        return shutil.get_terminal_size().columns if self.on_terminal else None

    @property
    def height(self) -> int:
        """Lines of the terminal."""
        return shutil.get_terminal_size().lines

    @property
    def is_json(self) -> bool:
        return self.form == "json"

    def document(self, **content: object) -> None:
        """One JSON document, the whole answer of a command."""
        click.echo(as_json({"version": SCHEMA_VERSION, **content}))

    def say(self, text: str, style: str = "") -> None:
        """A line for people."""
        if self.form == "table":
            click.echo(table.paint(text, style, colour=self.colour))

    def ids(self, ids: Iterable[str]) -> None:
        for task_id in ids:
            click.echo(task_id)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> None:
        for line in table.lines(columns, rows, width=self.width, colour=self.colour):
            click.echo(line)

    def note(self, text: str) -> None:
        """A line beside the answer, on standard error, so that what reads the answer does not get it."""
        if self.form == "table":
            click.echo(text, err=True)


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def client_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that all client commands have, and a `Session` as its first argument."""

    @options.url
    @options.token
    @options.home
    @click.option(
        "-o",
        "--output",
        type=click.Choice(FORMS),
        envvar="PYSCHED_OUTPUT",
        default="table",
        help="For people (the default), for programs, or ids alone.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="The same as -o quiet.")
    @functools.wraps(command)
    def run(
        *args: Any, url: str | None, token: str | None, home: Path | None, output: str, quiet: bool, **given: Any
    ) -> Any:
        session = Session(url=url, token=token, home=home, form="quiet" if quiet else output)
        try:
            return command(session, *args, **given)
        finally:
            session.close()

    return run


def styled(status: str) -> Cell:
    """A state in its colour."""
    return Cell(status, table.STATES.get(status, ""))
