"""A whole pysched on a throw-away home, started as users start it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from pysched.client import Client
from pysched.home import ADDRESS_FILE, TOKEN_FILE
from pysched.store.embedded import EmbeddedServer
from pysched.supervisor import SCHEDULER

_START_S = 60.0
_STOP_S = 120.0


@dataclass(frozen=True)
class Server:
    """A running `scheduler up`, or with `client` None a `scheduler run`."""

    home: Path
    node_pid: int
    client: Client | None


@contextmanager
def running(command: str, *options: str) -> Iterator[Server]:
    """`scheduler COMMAND` (`up` or `run`) until the end of the block; its messages are shown if it does not start."""
    root = Path(tempfile.mkdtemp(prefix="pysched-bench-"))
    root.chmod(0o711)  # PostgreSQL, which does not run as root, must pass through
    home, log = root / "home", root / "log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SCHEDULER, command, "--home", home, *options], env=environ, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _await_ready(process, log, home if command == "up" else None)
        client = Client(home=home, timeout_s=120.0) if command == "up" else None
        yield Server(home, _node_pid(process.pid), client)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        finally:
            process.kill()
            EmbeddedServer(home).destroy()
            shutil.rmtree(root, ignore_errors=True)


@dataclass(frozen=True)
class ControlPlane:
    """A running `scheduler api` on an embedded database of its own, which other processes may use meanwhile."""

    home: Path
    pid: int
    port: int
    token: str


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    root = Path(tempfile.mkdtemp(prefix="pysched-bench-"))
    root.chmod(0o711)
    home, log = root / "home", root / "log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SCHEDULER, "api", "--home", home, "--port", "0"], env=environ, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_S
        while not (home / ADDRESS_FILE).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.05)
        url = json.loads((home / ADDRESS_FILE).read_text())["url"]
        yield ControlPlane(home, process.pid, int(url.rsplit(":", 1)[1]), (home / TOKEN_FILE).read_text().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        finally:
            process.kill()
            EmbeddedServer(home).destroy()
            shutil.rmtree(root, ignore_errors=True)


def _await_ready(process: subprocess.Popen[bytes], log: Path, api_home: Path | None) -> None:
    """Until the node says so, and the API of `api_home` has left its address."""
    deadline = time.monotonic() + _START_S
    while b"ready" not in log.read_bytes() or (api_home is not None and not (api_home / ADDRESS_FILE).exists()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.05)


def _node_pid(pid: int) -> int:
    """The process that runs the lanes: `pid`, or the child of it that was started as `run`."""
    for child in psutil.Process(pid).children():
        if "run" in child.cmdline():
            return child.pid
    return pid
