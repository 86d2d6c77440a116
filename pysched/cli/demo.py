"""`scheduler demo`: everything on a throw-away home, a mixed workload over HTTP, a table of results."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pysched.client import Client
from pysched.demo import report, workload
from pysched.errors import NodeError, ServerError
from pysched.home import ADDRESS_FILE
from pysched.supervisor import SCHEDULER

_START_S = 30.0  # until the API answers
_STOP_S = 60.0  # until everything has stopped
_TASK_S = 5.0  # far more than a task takes: bounds the whole demo, so that a defect cannot hang it
_CONNECTIONS = 8


@click.command("demo")
@click.option("--count", type=click.IntRange(1, 100_000), default=500, show_default=True, help="Tasks to run.")
@click.option("--ml-ratio", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Share of ML tasks.")
@click.option("--workers", type=click.IntRange(1, 1000), default=8, show_default=True, help="Attempts at once.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which workload.")
def command(count: int, ml_ratio: float, workers: int, seed: int) -> int:
    """Start everything on a throw-away home, run a mixed workload over HTTP, show how it went.

    Ten of the 500 tasks are meant to go wrong: five fail once and then succeed, three always fail, two
    hang and meet their timeout.  Ends with 0 only if every task ended exactly as it had to, once.
    """
    console = Console()
    results = Path(tempfile.mkdtemp(prefix="pysched-demo-"))
    if os.geteuid() == 0:
        results.chmod(0o711)  # PostgreSQL, which does not run as root, must pass through
    home = results / "home"
    expected = workload.build(count, ml_ratio, seed)
    try:
        with _everything(home, workers) as server:
            run = _run(home, server, expected, workers, console)
        shutil.copy(home / "profiler.csv", results)  # complete, now that the node has stopped
    finally:
        _throw_away(home)
    report.show(run, console)
    _draw(results / "profiler.csv", console)
    mistakes = run.mistakes()
    for mistake in mistakes[:20]:
        console.print(f"[red]wrong:[/] {mistake}", highlight=False)
    if mistakes:
        console.print(f"[red]{len(mistakes)} things are not as they had to be[/]")
        return 1
    console.print(
        f"[green]all {count} tasks ended exactly as expected, once each, in the database and in completed/[/]",
        soft_wrap=True,
    )
    return 0


@contextmanager
def _everything(home: Path, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """`scheduler up` on `home`, stopped at the end."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    log = home.with_name("up.log")
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*SCHEDULER, "up", "--home", home, "--port", "0", "--workers", str(workers)],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # ^C comes to the demo alone, which then stops the server in order
        )
    try:
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGTERM)
            code = server.wait()
    if code != 0:
        raise NodeError(f"the server ended with {code}; its messages are in {log}")
    log.unlink()


def _throw_away(home: Path) -> None:
    from pysched.store.embedded import EmbeddedServer

    EmbeddedServer(home).destroy()
    shutil.rmtree(home, ignore_errors=True)


def _run(
    home: Path, server: subprocess.Popen[bytes], expected: Sequence[workload.Expected], workers: int, console: Console
) -> report.Run:
    progress = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
    )
    with progress, ThreadPoolExecutor(_CONNECTIONS) as pool:
        bar = progress.add_task("starting", total=len(expected), detail="")
        with _await_server(home, server) as client:
            progress.update(bar, description="running")
            submits = [pool.submit(_timed_submit, client, item) for item in expected]
            deadline = time.monotonic() + 60 + _TASK_S * len(expected)
            while True:
                stats = client.stats()
                ended = sum(stats["states"].get(state, 0) for state in ("succeeded", "failed", "cancelled"))
                detail = f"{stats['states'].get('running', 0)} running, {stats['states'].get('failed', 0)} failed"
                progress.update(bar, completed=ended, detail=detail)
                if ended >= len(expected) or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            records = {record["id"]: record for record in client.tasks()}
            return report.Run(
                expected=expected,
                records=records,
                done=_await_done(home / "completed", len(records)),
                submit_s=[submit.result() for submit in submits],
                workers=workers,
            )


def _await_server(home: Path, server: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        if (home / ADDRESS_FILE).exists():
            client = Client(home=home)
            try:
                if client.health()["status"] == "ok":
                    return client
            except ServerError:
                pass
            client.close()
        time.sleep(0.02)
    raise NodeError(f"the server did not start; its messages are in {home.with_name('up.log')}")


def _timed_submit(client: Client, item: workload.Expected) -> float:
    started = time.perf_counter()
    client.submit(item.task)
    return time.perf_counter() - started


def _await_done(folder: Path, count: int) -> dict[str, report.Record]:
    """`.done` follows the commit by milliseconds; give it seconds."""
    deadline = time.monotonic() + 10
    while len(list(folder.glob("*.done"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return report.read_completed(folder)


def _draw(csv: Path, console: Console) -> None:
    from pysched import plot

    page = csv.with_suffix(".html")
    plot.write_html(plot.read(csv), page)
    console.print(f"profile {csv}\nplot    {page}", highlight=False, soft_wrap=True)
