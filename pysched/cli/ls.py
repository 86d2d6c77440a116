"""`scheduler ls`: tasks, newest first."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from pysched.cli import recent, selectors, units
from pysched.cli.session import SCHEMA_VERSION, Session, as_json, client_command, styled
from pysched.cli.table import Cell, Column
from pysched.errors import InputError

if TYPE_CHECKING:
    from pysched.client.calls import Filters
    from pysched.client.results import TaskSummary

_AROUND = 3  # lines of a watched listing beside its rows: the head, `and more`, and the cursor's
_COMPLETE_ID = 18  # an id up to this length is never shortened


@click.command("ls")
@click.argument("filters", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=selectors.complete)
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, help="Rows.")
@click.option("-a", "--all", "everything", is_flag=True, help="Every task, however many.")
@click.option("-c", "--columns", metavar="A,B", help="Which columns; --columns help lists them.")
@click.option("-s", "--sort", metavar="COLUMN", help="Sort what is shown by it; -COLUMN: the other way round.")
@click.option("-l", "--long", is_flag=True, help="Whole ids, and more columns.")
@click.option("-w", "--watch", is_flag=True, help="Look again every two seconds, until ^C.")
@client_command
def command(
    session: Session,
    filters: tuple[str, ...],
    limit: int,
    everything: bool,
    columns: str | None,
    sort: str | None,
    long: bool,
    watch: bool,
) -> None:
    """List tasks, newest first: `scheduler ls status=failed since=2h tag=nightly`.

    Filters: status, priority, tag (several with commas), type, id, name (how they begin), node, text (anywhere),
    since, until, finished-since, finished-until.  %N in other commands means row N of the last listing.
    """
    if columns == "help":
        click.echo("\n".join(f"{name:<10} {text}" for name, (text, _, _) in _COLUMNS.items()))
        return
    names = _names(columns) if columns else list(_LONG if long else _SHORT)
    order = None if sort is None else _order(sort)
    chosen = selectors.filters(filters)
    wanted = None if everything else limit
    if session.form != "table":
        if watch:
            raise click.UsageError("--watch is for a terminal; leave out -o")
        _print_all(session, chosen, wanted, order)
        return
    if not watch:
        _show(session, chosen, wanted, order, names, long)
        return
    while True:
        visible = session.height - _AROUND if session.on_terminal else wanted
        shown = visible if wanted is None or visible is None else min(wanted, max(1, visible))
        _show(session, chosen, shown, order, names, long, clear=session.on_terminal)
        time.sleep(2)


def _fetch(
    session: Session, chosen: Filters, limit: int | None, order: _Order | None
) -> tuple[list[TaskSummary], bool]:
    """The tasks, and whether there are more."""
    tasks: list[TaskSummary] = []
    before: int | None = None
    while True:
        left = 1000 if limit is None else min(1000, limit + 1 - len(tasks))  # one more tells whether there are more
        page = session.client.list(limit=left, before=before, **chosen)
        tasks += page.tasks
        before = page.next
        if before is None or (limit is not None and len(tasks) > limit):
            break
    more = limit is not None and len(tasks) > limit
    if limit is not None:
        del tasks[limit:]
    if order is not None:
        key, descending = order
        tasks.sort(key=key, reverse=descending)
    return tasks, more


def _print_all(session: Session, chosen: Filters, limit: int | None, order: _Order | None) -> None:
    """For programs; without an order, page by page, so that millions need no memory."""
    if order is not None or limit is not None:
        tasks, more = _fetch(session, chosen, limit, order)
        recent.remember(session.client.url, "listed", [task["id"] for task in tasks])
        if session.is_json:
            session.document(tasks=tasks, more=more)
        else:
            session.ids(task["id"] for task in tasks)
        return
    if not session.is_json:
        session.ids(task["id"] for task in session.client.tasks(**chosen))
        return
    comma = ""
    click.echo(f'{{"version": {SCHEMA_VERSION}, "tasks": [', nl=False)
    for task in session.client.tasks(**chosen):
        click.echo(f"{comma}\n{as_json(task)}", nl=False)
        comma = ","
    click.echo('], "more": false}')


def _show(
    session: Session,
    chosen: Filters,
    limit: int | None,
    order: _Order | None,
    names: list[str],
    long: bool,
    *,
    clear: bool = False,
) -> None:
    tasks, more = _fetch(session, chosen, limit, order)
    if clear:
        click.clear()
    recent.remember(session.client.url, "listed", [task["id"] for task in tasks])
    if not tasks:
        session.note("no task fits" if chosen else "there are no tasks yet; submit one: scheduler submit -- echo hello")
        return
    now = datetime.now(timezone.utc)
    whole = long or session.width is None
    rows = []
    for number, task in enumerate(tasks, 1):
        cells: list[Cell | str] = []
        for name in names:
            if name == "row":
                cells.append(Cell(f"%{number}", "dim"))
            elif name == "id" and not whole:
                cells.append(shortened(task["id"]))
            else:
                cells.append(_COLUMNS[name][2](task, now))
        rows.append(cells)
    session.table([_COLUMNS[name][1] for name in names], rows)
    if more and clear:
        session.note("and more")
    elif more:
        session.note(f"and more: the newest {len(tasks)} are shown; see them all with --all, or more with -n")


def shortened(task_id: str) -> str:
    """Its beginning and end; every command takes it so."""
    return task_id if len(task_id) <= _COMPLETE_ID else f"{task_id[:8]}…{task_id[-6:]}"


def elapsed(task: Mapping[str, Any], now: datetime) -> str:
    """How long it has run, or ran."""
    if task["status"] == "running" and task["started_at"] is not None:
        return units.duration(max(0.0, (now - units.moment(task["started_at"])).total_seconds()))
    return "-" if task["run_ms"] is None else units.duration(task["run_ms"] / 1000)


def waited(task: Mapping[str, Any], now: datetime) -> str:
    """From submission to start, or until now."""
    if task["wait_ms"] is not None:
        return units.duration(task["wait_ms"] / 1000)
    end = now if task["finished_at"] is None else units.moment(task["finished_at"])
    return units.duration(max(0.0, (end - units.moment(task["submitted_at"])).total_seconds()))


def why(task: Mapping[str, Any], now: datetime) -> str:
    """What one asks next: the reason of an end, or what it waits for."""
    if task["reason"]:
        return str(task["reason"])
    if task["cancel_requested"] and task["status"] == "running":
        return "being cancelled"
    if task["status"] == "blocked":
        return f"after {task['waiting_for']} more"
    if task["status"] == "scheduled" and task["due_at"] is not None:
        left = (units.moment(task["due_at"]) - now).total_seconds()
        return f"{'retry ' if task['failures'] else ''}in {units.duration(max(0.0, left))}"
    return _progress(task.get("progress"))  # an older server says nothing


def raised(task: Mapping[str, Any]) -> str:
    """The exception that ended its entrypoint, in a line; "" if there was none."""
    error = _error(task)
    return f"{error.get('type')}: {error.get('message')}" if error else ""


def traceback(task: Mapping[str, Any]) -> str:
    """That of `raised`, as Python prints it, if there is one."""
    return str(_error(task).get("traceback") or "")


def _error(task: Mapping[str, Any]) -> Mapping[str, Any]:
    result = task["result"]
    error = result.get("error") if isinstance(result, dict) and task["status"] == "failed" else None
    return error if isinstance(error, dict) and "type" in error else {}


def _progress(told: object) -> str:
    """Of a running task: a share as per cent, and what else it says."""
    if told is None:
        return ""
    if isinstance(told, dict) and "fraction" in told:
        rest = ", ".join(f"{name} {_plainly(value)}" for name, value in told.items() if name != "fraction")
        return f"{_plainly(told['fraction'], share=True)} {rest}".strip()
    return _plainly(told, share=True)


def _plainly(value: object, *, share: bool = False) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        if share and 0 <= value <= 1:
            return f"{value:.0%}"
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else as_json(value)


_Show = Callable[["TaskSummary", datetime], "Cell | str"]
_COLUMNS: dict[str, tuple[str, Column, _Show]] = {
    "row": ("number of the row, for %N", Column("ROW", right=True), lambda task, now: ""),
    "id": ("the id", Column("ID"), lambda task, now: task["id"]),
    "name": ("the name", Column("NAME", shrinks=True, least=12), lambda task, now: task["name"]),
    "status": ("where it stands", Column("STATUS"), lambda task, now: styled(task["status"])),
    "priority": ("HIGH, MED or LOW", Column("PRI"), lambda task, now: task["priority"]),
    "rank": ("order inside a priority", Column("RANK", right=True), lambda task, now: str(task["rank"])),
    "type": ("system or ml", Column("TYPE"), lambda task, now: task["type"]),
    "wait": ("from submission to start", Column("WAIT", right=True), waited),
    "time": ("how long it runs, or ran", Column("TIME", right=True), elapsed),
    "tries": ("executions", Column("TRIES", right=True), lambda task, now: str(task["attempts"])),
    "why": ("reason of its end, or what it waits for", Column("WHY", shrinks=True), why),
    "exit": (
        "exit code or signal",
        Column("EXIT", right=True),
        lambda task, now: str(task["signal"] or ("" if task["exit_code"] is None else task["exit_code"])),
    ),
    "node": ("that has it, or had it", Column("NODE"), lambda task, now: (task["node"] or "-")[:8]),
    "submitted": ("when", Column("SUBMITTED"), lambda task, now: units.local(task["submitted_at"])),
    "started": ("when", Column("STARTED"), lambda task, now: units.local(task["started_at"])),
    "finished": ("when", Column("FINISHED"), lambda task, now: units.local(task["finished_at"])),
}
_SHORT = ("row", "id", "name", "status", "priority", "wait", "time", "tries", "why")
_LONG = ("row", "id", "name", "status", "priority", "rank", "submitted", "wait", "time", "tries", "node", "why")

_Order = tuple[Callable[["TaskSummary"], Any], bool]
_FIELDS = {
    "row": "sequence", "wait": "wait_ms", "time": "run_ms", "tries": "attempts", "why": "reason",
    "exit": "exit_code", "submitted": "submitted_at", "started": "started_at", "finished": "finished_at",
}  # fmt: skip


def _names(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        _check(name)
    return names


def _check(name: str) -> None:
    if name not in _COLUMNS:
        near = difflib.get_close_matches(name, _COLUMNS, n=1, cutoff=0.5)
        raise InputError(
            f"{name!r} is no column; {f'did you mean {near[0]}?' if near else 'they are ' + ', '.join(_COLUMNS)}"
        )


def _order(text: str) -> _Order:
    """How to sort: what is missing comes last either way."""
    name = text.removeprefix("-").lower()
    _check(name)
    field = _FIELDS.get(name, name)
    descending = text.startswith("-")

    def key(task: TaskSummary) -> Any:
        value: Any = task.get(field)
        if name == "priority":
            value = ("HIGH", "MED", "LOW").index(value)
        return ((value is not None) == descending, 0 if value is None else value)

    return key, descending
