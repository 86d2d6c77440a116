"""A queue folder with very many files: how fast they are taken in, and what memory that needs.

    python -m benchmarks.full_folder [--files 200000] [--folder /dev/shm]

A paused node finds the files at its start, so that taking in is all it does.  Memory is the node's peak (VmHWM) against
that of a node that found a hundredth of them: flat means that the two are alike.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from pysched.store.embedded import EmbeddedServer
from pysched.store.store import Store

PATIENCE_S = 1800.0


def take_in(root: Path, queue: Path, url: str, count: int) -> tuple[float, int]:
    """(seconds, peak in KiB) of a new node that takes in `count` files."""
    queue.mkdir(exist_ok=True)
    for number in range(count):
        (queue / f"{root.name}-{number}.task").write_text('{"command": "true"}')
    environ = {**os.environ, "PYSCHED_DATABASE": url}
    command = [sys.executable, "-m", "pysched.cli", "run", "--home", str(root), "--queue", str(queue)]
    began = time.monotonic()
    with (root.parent / f"{root.name}.log").open("wb") as log:
        guard = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        # Not by looking into the folder, which would cost as much as what is measured.
        with psycopg.connect(url, autocommit=True) as conn:
            while accepted(conn) < count:
                if time.monotonic() > began + PATIENCE_S:
                    raise SystemExit(f"not done within {PATIENCE_S:.0f} s")
                time.sleep(0.2)
        while next(os.scandir(queue), None) is not None:
            time.sleep(0.05)
        took = time.monotonic() - began
        child = Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text().split()[0]
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{child}/status").read_text())
        return took, 0 if peak is None else int(peak[1])
    finally:
        guard.send_signal(signal.SIGTERM)
        guard.wait()


def accepted(conn: psycopg.Connection[tuple[int]]) -> int:
    row = conn.execute(
        "SELECT coalesce(sum(total), 0)::bigint FROM pysched.tallies WHERE kind = 'submitted' AND source IN"
        " (SELECT incarnation FROM pysched.nodes WHERE ended_at IS NULL)"
    ).fetchone()
    return 0 if row is None else row[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="pysched-") as name,
        tempfile.TemporaryDirectory(prefix="pysched-", dir=arguments.folder) as memory,
    ):
        root = Path(name)
        root.chmod(0o711)
        server = EmbeddedServer(root / "database")
        try:
            with server.running() as url:
                with Store(url) as store:
                    store.migrate()
                    store.set_paused(True)
                few = take_in(root / "few", Path(memory) / "queue", url, arguments.files // 100)
                many = take_in(root / "many", Path(memory) / "queue", url, arguments.files)
        finally:
            server.destroy()
    print(
        f"{arguments.files} files: {arguments.files / many[0]:.0f}/s, peak memory {many[1] / few[1]:.2f}× of that with "
        f"{arguments.files // 100} ({many[1] // 1024} against {few[1] // 1024} MiB)"
    )


if __name__ == "__main__":
    main()
