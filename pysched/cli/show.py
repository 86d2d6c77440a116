"""`scheduler show`: one task in full."""

from __future__ import annotations

import shlex
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from pysched.cli import selectors, units
from pysched.cli.ls import elapsed, raised, traceback, why
from pysched.cli.session import Session, as_json, client_command, styled
from pysched.cli.table import STATES, Column, paint, printable

if TYPE_CHECKING:
    from pysched.client.results import Attempt, TaskDetail

_ATTEMPTS = [
    Column("TRY", right=True), Column("STATUS"), Column("STARTED"), Column("TIME", right=True),
    Column("CPU", right=True), Column("MEMORY", right=True),
    Column("PID", right=True), Column("NODE"), Column("REASON", shrinks=True),
]  # fmt: skip


@click.command("show", epilog=selectors.EPILOG)
@selectors.ids_argument()
@client_command
def command(session: Session, words: tuple[str, ...]) -> None:
    """Show a task: what it is, where it stands, and each of its attempts."""
    ids = selectors.expand(session, selectors.select(session, words))
    tasks = [session.client.get(task_id) for task_id in ids]
    if session.is_json:
        session.document(tasks=tasks)
    elif session.form == "quiet":
        session.ids(ids)
    else:
        for index, task in enumerate(tasks):
            if index:
                session.say("")
            _show(session, task)


def _show(session: Session, task: TaskDetail) -> None:
    now = datetime.now(timezone.utc)
    spec = task["task"]
    status = paint(task["status"], STATES.get(task["status"], ""), colour=session.colour)
    more = why({**task, "attempts": len(task["attempts"])}, now)
    lines = {
        "id": task["id"],
        "name": task["name"] if task["name"] != task["id"] else "",
        "status": f"{status} ({more})" if more else status,
        "command": _command(spec),
        "priority": task["priority"] + (f", rank {task['rank']}" if task["rank"] else ""),
        "submitted": units.local(task["submitted_at"]),
        "waited": "" if task["wait_ms"] is None else units.duration(task["wait_ms"] / 1000),
        "started": "" if task["started_at"] is None else units.local(task["started_at"]),
        "finished": "" if task["finished_at"] is None else units.local(task["finished_at"]),
        "ran": "" if elapsed(task, now) == "-" else elapsed(task, now),
        "progress": "" if task.get("progress") is None else as_json(task["progress"]),
        "raised": raised(task),
        "result": "" if task["result"] is None or raised(task) else as_json(task["result"]),
        **{name: _shown(spec[name]) for name in _REST if name in spec},
        "mem": units.size(spec["mem"]) if "mem" in spec else "",
        "stdout": task["stdout"] or "",
        "stderr": task["stderr"] or "",
    }
    for name, value in lines.items():
        if value:
            text = value if name == "status" else printable(value)
            click.echo(f"{paint(f'{name:<13}', 'dim', colour=session.colour)} {text}")
    if trace := traceback(task):
        click.echo()
        for line in trace.rstrip().splitlines():
            click.echo(printable(line))
    if task["attempts"]:
        click.echo()
        session.table(_ATTEMPTS, [_attempt(attempt, now) for attempt in task["attempts"]])


# What else a task may say; what was left at its default does not stand in `task`.
_REST = (
    "type", "entrypoint", "params", "duration_ms", "max_retries", "retry_delay_s", "timeout_s", "grace_s", "delay_s",
    "after", "env", "cwd", "tags", "cpus", "gpus",
)  # fmt: skip


def _command(spec: dict[str, Any]) -> str:
    command = spec.get("command")
    if command is None:
        return ""
    return command if isinstance(command, str) else shlex.join(command)


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else value if isinstance(value, str) else as_json(value)


def _attempt(attempt: Attempt, now: datetime) -> list[Any]:
    start, end = attempt["started_at"], attempt["finished_at"]
    seconds = None
    if start is not None:
        seconds = ((now if end is None else units.moment(end)) - units.moment(start)).total_seconds()
    return [
        str(attempt["attempt"]),
        styled(attempt["status"]),
        units.local(start),
        "-" if seconds is None else units.duration(max(0.0, seconds)),
        "-" if attempt["cpu_ms"] is None else units.duration(attempt["cpu_ms"] / 1000),
        # 0 is what the kernel says of a small process: since 6.2 it counts pages in batches, a processor at a time.
        "-" if not attempt["max_rss_kb"] else units.size(attempt["max_rss_kb"] * 1024),
        str(attempt["pid"] or "-"),
        attempt["node"][:8],
        attempt["reason"] or "",
    ]
