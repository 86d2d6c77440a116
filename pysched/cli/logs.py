"""`scheduler logs`: what jobs wrote."""

from __future__ import annotations

import click

from pysched.cli import selectors, watching
from pysched.cli.ls import shortened
from pysched.cli.session import SCHEMA_VERSION, Session, as_json, client_command
from pysched.cli.table import paint

_TAIL_PIECE = 64 * 1024


@click.command("logs", epilog=selectors.EPILOG)
@selectors.ids_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended; exits with its exit code.")
@click.option("--stderr", "stream", flag_value="stderr", help="Standard error instead of standard output.")
@click.option("--stdout", "stream", flag_value="stdout", default="stdout", hidden=True)
@click.option("--both", "stream", flag_value="both", help="Both; errors go to standard error.")
@click.option("-n", "--lines", type=click.IntRange(0), help="The last lines alone.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt; the newest by default.")
@client_command
def command(
    session: Session, words: tuple[str, ...], follow: bool, stream: str, lines: int | None, attempt: int | None
) -> int:
    """Print what tasks wrote; of several, one after the other, or with -f all at once, each line behind its task."""
    if follow and (lines is not None or session.form != "table"):
        raise click.UsageError("--follow shows all as it comes; leave out --lines and -o")
    ids = selectors.expand(session, selectors.select(session, words, everything={"status": ["running"]}))
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    if follow:
        return watching.follow(session, ids, streams=streams, attempt=attempt)
    if session.is_json:
        _print_json(session, ids, streams, attempt, lines)
        return 0
    for index, task_id in enumerate(ids):
        if len(ids) > 1 and session.form == "table":
            head = f"{'' if index == 0 else chr(10)}==> {shortened(task_id)} <=="
            click.echo(paint(head, "bold", colour=session.colour))
        for each in streams:
            if lines is not None:
                watching.emit(_last_lines(session, task_id, each, attempt, lines), each)
                continue
            for piece in session.client.logs(task_id, each, attempt=attempt):
                watching.emit(piece, each)
    return 0


def _last_lines(session: Session, task_id: str, stream: str, attempt: int | None, count: int) -> bytes:
    """The end of a log; kept in memory is no more than that, however long the log."""
    kept = b""
    for piece in session.client.logs(task_id, stream, attempt=attempt):
        kept += piece
        if len(kept) > _TAIL_PIECE:
            kept = b"".join(kept.splitlines(keepends=True)[-count:]) if count else b""
    return b"".join(kept.splitlines(keepends=True)[-count:]) if count else b""


def _print_json(
    session: Session, ids: list[str], streams: tuple[str, ...], attempt: int | None, lines: int | None
) -> None:
    logs = []
    for task_id in ids:
        entry: dict[str, object] = {"id": task_id}
        for stream in streams:
            if lines is None:
                data = b"".join(session.client.logs(task_id, stream, attempt=attempt))
            else:
                data = _last_lines(session, task_id, stream, attempt, lines)
            entry[stream] = data.decode("utf-8", "replace")
        logs.append(entry)
    click.echo(as_json({"version": SCHEMA_VERSION, "logs": logs}))
