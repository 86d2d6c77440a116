"""Options that several commands share.  Each is also an environment variable `PYSCHED_…`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_FOLDER = click.Path(file_okay=False, path_type=Path)


def apply(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """One decorator of many, in the order in which help lists them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


home = click.option("--home", type=_FOLDER, help="Folder of the database, logs, token, queue/ and completed/.")
url = click.option("--url", help="Address of the server; found by itself if missing.")
token = click.option("--token", help="Bearer token; found by itself if missing.")
database = click.option("--database", metavar="URL", help="PostgreSQL to use; without it one runs in the home.")

node = apply(
    click.option("--workers", type=int, help="Attempts that run at once; by default one a processor."),
    click.option("--lanes", type=int, help="Native dispatch threads; by default one a processor."),
    click.option(
        "--cpus", type=float, help="Processors that tasks may ask for; by default those this process may use."
    ),
    click.option("--mem", metavar="SIZE", help="Memory that tasks may ask for, as 48GiB; by default the machine's."),
    click.option(
        "--gpus", metavar="A,B", help="GPUs that tasks may ask for; by default those that NVML sees, or none."
    ),
    click.option(
        "--reuse",
        metavar="LOW,MED",
        help="Priorities whose entrypoints share processes unless a task says; by default none.",
    ),
    click.option("--queue", type=_FOLDER, help="Folder watched for .task files; HOME/queue by default."),
    click.option("--completed", type=_FOLDER, help="Folder that gets .done files; HOME/completed by default."),
    click.option("--poll", "poll_s", type=float, metavar="SECONDS", help="Scan of the queue folder; 1 by default."),
    click.option(
        "--ageing",
        "ageing_s",
        type=float,
        metavar="SECONDS",
        help="Wait for each priority above its own after which a task starts as one of HIGH; 600 by default, 0: never.",
    ),
    click.option(
        "--retention",
        "retention_days",
        type=float,
        metavar="DAYS",
        help="Remove tasks this long after their end, with their logs; 30 by default, 0: never.",
    ),
    click.option("--log-limit", metavar="SIZE", help="Limit of each log, as 64MiB (the default); 0 for none."),
    click.option(
        "--on-log-limit",
        type=click.Choice(["truncate", "fail"]),
        help="Cut the log of a job that writes more (the default), or fail the job, too.",
    ),
    click.option(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="Wait for running jobs when stopping; for ever by default.",
    ),
    click.option(
        "--on-outage",
        type=click.Choice(["auto", "keep", "kill"]),
        help="Running jobs while the database is down for long: auto by default, see docs/operating.md.",
    ),
)

api = apply(
    click.option("--host", help="Address to listen on; 127.0.0.1 by default."),
    click.option("--port", type=int, help="Port to listen on; 8321 by default, 0 picks a free one."),
    click.option("--token", help="Bearer token; by default the one in HOME/token, made on first start."),
    click.option("--no-auth", is_flag=True, default=None, help="Serve without a token; on loopback only."),
    click.option("--mirror", type=_FOLDER, help="Write each accepted task into this folder as a .task file, too."),
)

guard = click.option("--guard", hidden=True, help="Of a node: its guard.")
place = click.option("--place", hidden=True, help="Of an API: where its socket is kept.")

parent = click.option("--parent-pid", type=int, hidden=True, help="Stop when this process ends.")
