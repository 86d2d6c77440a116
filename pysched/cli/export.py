"""`scheduler export`: records for other programs."""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from pysched.cli import selectors, units
from pysched.cli.session import Session, as_json, client_command

if TYPE_CHECKING:
    from pysched.client.results import TaskDetail

_CONNECTIONS = 8
_CSV = (
    "id", "name", "type", "priority", "rank", "status", "reason", "exit_code", "signal", "attempts", "node",
    "submitted_at", "started_at", "finished_at", "wait_ms", "run_ms", "result", "stdout", "stderr",
)  # fmt: skip
_JOBLOG = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"


@click.command("export")
@click.argument("filters", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=selectors.complete)
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv", "joblog"]), default="jsonl", show_default=True,
    help="An object a line; a table with a header; GNU parallel's log.",
)  # fmt: skip
@click.option("--joblog", is_flag=True, help="The same as --format joblog.")
@client_command
def command(session: Session, filters: tuple[str, ...], form: str, joblog: bool) -> None:
    """Write tasks to standard output, however many: `scheduler export status=failed since=1d --format csv`.

    jsonl and csv come newest first; a joblog in the order of submission, with what has been started, as `parallel
    --joblog` writes it.  -o json is one document, -o quiet ids alone.
    """
    chosen = selectors.filters(filters)
    if joblog or form == "joblog":
        for line in _joblog(session, [task["id"] for task in session.client.tasks(**chosen)][::-1]):
            click.echo(line)
        return
    tasks = session.client.tasks(**chosen)
    if session.is_json:
        session.document(tasks=list(tasks))
    elif session.form == "quiet":
        session.ids(task["id"] for task in tasks)
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, _CSV, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for task in tasks:
            result = None if task["result"] is None else as_json(task["result"])
            writer.writerow({**task, "result": result})
    else:
        for task in tasks:
            click.echo(as_json(task))


def _joblog(session: Session, ids: list[str]) -> Iterator[str]:
    """GNU parallel's columns; what was sent and received is nothing here, nobody copies files."""
    hosts = {node["incarnation"]: node["host"] for node in session.client.nodes()}
    yield _JOBLOG
    for number, task in enumerate(_details(session, ids), 1):
        if task["started_at"] is None or task["finished_at"] is None:
            continue
        run_s = (task["run_ms"] or 0) / 1000
        last = task["attempts"][-1]["started_at"] if task["attempts"] else None
        start = units.moment(last or task["started_at"]).timestamp()
        node = task["node"] or ""
        fields: list[Any] = [
            number, hosts.get(node, node[:8] or ":"), f"{start:.3f}", f"{run_s:10.3f}", 0, 0, *_end(task),
            _command(task),
        ]  # fmt: skip
        yield "\t".join(map(str, fields))


def _details(session: Session, ids: Iterable[str]) -> Iterator[TaskDetail]:
    """Task by task in order, some asked for ahead; a list does not hold commands."""
    rest = iter(ids)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        while batch := list(islice(rest, 200)):
            yield from pool.map(session.client.get, batch)


def _end(task: TaskDetail) -> tuple[int, int]:
    """Exit value and signal, as parallel has them: -1 for what never exited."""
    from pysched.cli.watching import exit_code

    if task["signal"]:
        return -1, max(0, exit_code({**task, "reason": ""}) - 128)
    return (task["exit_code"] if task["exit_code"] is not None else -1), 0


def _command(task: TaskDetail) -> str:
    spec = task["task"]
    command = spec.get("command", spec.get("entrypoint", task["name"]))
    text = command if isinstance(command, str) else shlex.join(command)
    return text.replace("\t", " ").replace("\n", " ")
