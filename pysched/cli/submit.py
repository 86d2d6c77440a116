"""`scheduler submit`: work in."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click

from pysched import trace
from pysched.cli import recent, selectors, watching
from pysched.cli.session import Session, as_json, client_command
from pysched.cli.units import DURATION
from pysched.errors import InputError
from pysched.ids import new_id

_BATCH = 50_000  # tasks in one request, well below what a server takes
_NAME = 200  # characters
_ARRAY = re.compile(r"(-?\d+)(?:-(-?\d+)(?::(\d+))?)?\Z")
_ARRAY_MAX = 1_000_000

_field_options = [
    click.option("--id", "task_id", help="The id, also the idempotency key; made for you if missing."),
    click.option("-N", "--name", help="For people; the command or entrypoint if missing."),
    click.option("--type", help="system (the default) or ml."),
    click.option("-p", "--priority", help="HIGH, MED (the default) or LOW."),
    click.option("--rank", type=int, help="Order inside a priority, larger first."),
    click.option("--entrypoint", metavar="MODULE:FUNCTION", help="Call this instead of a command; needs --type ml."),
    click.option("-P", "--param", "params", multiple=True, metavar="NAME=JSON", help="A keyword argument of it."),
    click.option("--cpus", type=float, help="Processors it holds while it runs; 1 for ml, 0 for system by default."),
    click.option("--mem", metavar="SIZE", help="Memory it holds, as 4GiB; ends when it uses more."),
    click.option("--gpus", type=float, help="GPUs it holds: a part of one, as 0.5, or whole ones."),
    click.option(
        "--reuse/--no-reuse", default=None, help="Call it in a process that made such calls before, or in its own."
    ),
    click.option("--duration", type=DURATION, help="Simulated work, without command and entrypoint."),
    click.option("-r", "--retries", type=int, help="Further attempts after the first; 3 by default."),
    click.option("--retry-delay", type=DURATION, help="Before the second attempt, then doubling; 0.5s by default."),
    click.option("-T", "--timeout", type=DURATION, help="Of one attempt, as 90s or 2h30m."),
    click.option("--grace", type=DURATION, help="Between TERM and KILL; 5s by default."),
    click.option("--delay", type=DURATION, help="Start no sooner than this from now."),
    click.option("-A", "--after", multiple=True, metavar="SELECTOR", help="Start when these have succeeded."),
    click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="A variable; without =, yours of now."),
    click.option("-C", "--cwd", type=click.Path(), help="Where it runs; . is where you stand."),
    click.option("-t", "--tag", "tags", multiple=True, help="For filters."),
]


def _fields(command: Any) -> Any:
    for option in reversed(_field_options):
        command = option(command)
    return command


@click.command("submit", context_settings={"ignore_unknown_options": False})
@_fields
@click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="Tasks from a file; - is standard input.")
@click.option(
    "--each-line",
    metavar="FILE",
    help="A task for each line, which {} stands for, or which comes last in CMD.",
)
@click.option(
    "--array", metavar="N-M[:STEP]", help="A task for each number; {} in CMD, --param or --env stands for it."
)
@click.option("--shell", is_flag=True, help="CMD is text for /bin/sh, as one word of CMD always is.")
@click.option("--wait", is_flag=True, help="Until it has ended; exits with its exit code.")
@click.option("--follow", is_flag=True, help="Show its output meanwhile; exits with its exit code.")
@click.option("--dry-run", is_flag=True, help="Check and show what would be sent; send nothing.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED, metavar="[-- CMD...]")
@client_command
def command(
    session: Session,
    cmd: tuple[str, ...],
    files: tuple[str, ...],
    each_line: str | None,
    array: str | None,
    shell: bool,
    wait: bool,
    follow: bool,
    dry_run: bool,
    **given: Any,
) -> int:
    """Submit a command, or tasks from files: `scheduler submit -p high --timeout 2h -- python train.py`.

    Several words run directly, one word through the shell: `-- 'zcat data.gz | wc -l'`.  Files hold a JSON object, an
    array, an object a line, or lines of `key: value`; options fill what their tasks leave open.
    """
    fields = _given_fields(session, **given)
    if files and (cmd or each_line or array):
        raise click.UsageError("--file brings whole tasks; leave out the command, --each-line and --array")
    if each_line and array:
        raise click.UsageError("--each-line and --array are both given; keep one")
    if not cmd and not files and not array and not each_line and not {"entrypoint", "duration_ms"} & fields.keys():
        if sys.stdin.isatty():
            raise click.UsageError("there is no command; write it behind --, as in: scheduler submit -- echo hello")
        files = ("-",)
    if files:
        tasks: Iterator[dict[str, Any]] = ({**fields, **task} for name in files for task in _from_file(name))
    else:
        tasks = _from_command(cmd, fields, _items(each_line, array), given["params"], shell=shell)
    if dry_run:
        return _show(session, tasks)
    ids = _send(session, tasks)
    if not ids:
        raise InputError("there was no task to submit; the input is empty")
    recent.remember(session.client.url, "submitted", ids)
    if follow:
        return watching.follow(session, ids)
    if wait:
        return watching.wait(session, ids, timeout_s=None)
    return 0


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────────


def _given_fields(session: Session, **given: Any) -> dict[str, Any]:
    """The fields of a task that options gave."""
    fields: dict[str, Any] = {
        "id": given["task_id"],
        "name": given["name"],
        "type": given["type"],
        "priority": given["priority"],
        "rank": given["rank"],
        "entrypoint": given["entrypoint"],
        "params": dict(_param(text) for text in given["params"]) or None,
        "reuse": given["reuse"],
        "duration_ms": None if given["duration"] is None else round(given["duration"] * 1000),
        "cpus": given["cpus"],
        "mem": given["mem"],
        "gpus": given["gpus"],
        "max_retries": given["retries"],
        "retry_delay_s": given["retry_delay"],
        "timeout_s": given["timeout"],
        "grace_s": given["grace"],
        "delay_s": given["delay"],
        "env": dict(_variable(text) for text in given["env"]) or None,
        "cwd": None if given["cwd"] is None else str(Path(given["cwd"]).absolute()),
        "tags": list(given["tags"]) or None,
        **trace.fields(os.environ.get("TRACEPARENT"), os.environ.get("TRACESTATE")),
    }
    if given["after"]:
        words = given["after"]
        fields["after"] = selectors.expand(session, selectors.select(session, words))
    return {name: value for name, value in fields.items() if value is not None}


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--param {text}: has no name; write NAME=VALUE, the value as JSON or plain text")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # text needs no quotes


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if equals:
        return name, value
    if name not in os.environ:
        raise click.UsageError(f"--env {name}: is not set here; write {name}=VALUE")
    return name, os.environ[name]


def _items(each_line: str | None, array: str | None) -> Iterator[str] | None:
    """What `{}` stands for, task by task; None: one task, and `{}` is nothing special."""
    if array is not None:
        match = _ARRAY.match(array)
        if match is None:
            raise click.UsageError(f"--array {array}: is no range; write 1-100, or 1-100:5 for every fifth")
        first, last = int(match[1]), int(match[2] or match[1])
        numbers = range(first, last + 1, int(match[3] or 1) or 1)
        if not 0 < len(numbers) <= _ARRAY_MAX:
            raise click.UsageError(f"--array {array}: has {len(numbers)} numbers; 1 to {_ARRAY_MAX} will do")
        return map(str, numbers)
    if each_line is None:
        return None
    return (line.rstrip("\r\n") for line in _lines(each_line) if line.strip())


def _from_command(
    words: Sequence[str], fields: dict[str, Any], items: Iterator[str] | None, params: Sequence[str], *, shell: bool
) -> Iterator[dict[str, Any]]:
    if items is None:
        yield _task(words, fields, shell=shell)
        return
    has_place = any("{}" in word for word in words)
    for number, item in enumerate(items, 1):
        if len(words) == 1 or shell:  # text for the shell: the item is one word of it, whatever it holds
            text = words[0] if len(words) == 1 else " ".join(words)
            own = [text.replace("{}", shlex.quote(item)) if has_place else f"{text} {shlex.quote(item)}"]
        elif has_place or not words:
            own = [word.replace("{}", item) for word in words]
        else:
            own = [*words, item]
        task = _task(own, fields, shell=shell)
        if "id" in fields:
            task["id"] = f"{fields['id']}-{number}"
        if params:
            task["params"] = dict(_param(text.replace("{}", item)) for text in params)
        if "env" in fields:
            task["env"] = {name: value.replace("{}", item) for name, value in fields["env"].items()}
        if "name" in fields:
            task["name"] = fields["name"].replace("{}", item) if "{}" in fields["name"] else f"{fields['name']} {item}"
        elif not words and "entrypoint" in fields:
            task["name"] = f"{fields['entrypoint']} {item}"[:_NAME]
        yield task


def _task(words: Sequence[str], fields: dict[str, Any], *, shell: bool) -> dict[str, Any]:
    task = dict(fields)
    if words:
        text = words[0] if len(words) == 1 else " ".join(words) if shell else shlex.join(words)
        task["command"] = text if shell or len(words) == 1 else list(words)
        if "name" not in task:
            name = re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()
            task["name"] = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    elif "entrypoint" in fields:
        task.setdefault("name", fields["entrypoint"][:_NAME])
    return task


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────


def _open(name: str) -> IO[str]:
    if name == "-":
        return sys.stdin
    try:
        return open(name, encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}; name a file that can be read, or - for standard input") from None


def _lines(name: str) -> Iterator[str]:
    with _open(name) as file:
        try:
            yield from file
        except UnicodeDecodeError:
            raise InputError(f"{name}: is not UTF-8; save it as UTF-8") from None


def _from_file(name: str) -> Iterator[dict[str, Any]]:
    """Tasks as objects: from an object a line as it comes, from anything else once it is read whole."""
    lines = _lines(name)
    first = next((line for line in lines if line.strip()), "")
    if not first:
        return
    if first.lstrip().startswith("{"):
        try:
            task = json.loads(first)
        except ValueError:
            pass  # an object over several lines, or what is none
        else:
            yield _object(task, f"{name}: line 1")
            for number, line in enumerate(lines, 2):
                if line.strip():
                    yield _object(_parsed(line, f"{name}: line {number}"), f"{name}: line {number}")
            return
    text = first + "".join(lines)
    if first.lstrip()[0] in "[{":
        whole = _parsed(text, name)
        for index, task in enumerate(whole if isinstance(whole, list) else [whole]):
            yield _object(task, f"{name}: task {index}")
        return
    from pysched.intake.taskfile import parse_task_file

    # A `.task` file takes its id from its name, there to be known again; here the same file may be meant twice.
    task = parse_task_file("x", text.encode())
    fields: dict[str, Any] = json.loads(task.model_dump_json(exclude_defaults=True))
    if fields["id"] == "x":
        del fields["id"]
    yield fields


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: is no JSON ({error}); write an object, an array, or an object a line") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: is no JSON object; write a task as {{…}}")
    return value


# ── sending ──────────────────────────────────────────────────────────────────────────────────────────────────


def _send(session: Session, tasks: Iterator[dict[str, Any]]) -> list[str]:
    """Submit all, many in a request, and say so as each request is durable."""
    ids: list[str] = []
    batch: list[dict[str, Any]] = []
    for task in tasks:
        batch.append({**task, "id": task.get("id") or new_id()})
        if len(batch) == _BATCH:
            ids += _send_batch(session, batch, len(ids))
            batch = []
    if batch:
        ids += _send_batch(session, batch, len(ids))
    if session.is_json:
        session.document(submitted=ids)
    elif session.form == "quiet":
        session.ids(ids)
    elif len(ids) == 1:
        session.say(f"submitted {ids[0]}")
    elif ids:
        session.say(f"submitted {len(ids)} tasks, {ids[0]} to {ids[-1]}")
    return ids


def _send_batch(session: Session, batch: list[dict[str, Any]], before: int) -> list[str]:
    try:
        if len(batch) == 1:
            return [session.client.submit(batch[0])["id"]]
        return [task["id"] for task in session.client.submit_many(batch)]
    except InputError as error:
        if before:
            raise InputError(f"{error} (the {before} tasks before this batch were submitted)") from None
        raise


def _show(session: Session, tasks: Iterator[dict[str, Any]]) -> int:
    """Check each as the server would, and print what would be sent."""
    from pysched.errors import TaskError
    from pysched.task import parse_task

    checked = []
    for index, task in enumerate(tasks):
        try:
            parse_task(task)
        except TaskError as error:
            raise TaskError(*error.problems, index=index if index else None) from None
        checked.append(task)
    if session.is_json:
        session.document(tasks=checked)
    else:
        for task in checked:
            click.echo(as_json(task))
    return 0
