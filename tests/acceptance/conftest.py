"""A node started as users start it, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 60.0  # until an awaited condition counts as failed; reached only by a defect


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`, looked at again and again; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.01)
    return value


class Process:
    """A command line of pysched under test, its messages in a file."""

    def __init__(self, arguments: list[str], log: Path, environ: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "pysched.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )

    @property
    def messages(self) -> str:
        return self.log.read_text()

    def await_message(self, text: str) -> None:
        def said() -> bool:
            assert self.popen.poll() is None or text in self.messages, self.messages
            return text in self.messages

        wait_until(said, f"the message {text!r}")

    def terminate(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(DEADLINE_S)

    def kill(self) -> None:
        """Guard and node at once: stopped first, the guard starts no other node."""
        self.popen.send_signal(signal.SIGSTOP)
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.kill()
        self.popen.wait()

    def children(self) -> list[int]:
        """Node and API, as far as they live."""
        pid = self.popen.pid
        try:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return []
        return [int(child) for child in found if _is_scheduler(int(child))]


def _is_scheduler(pid: int) -> bool:
    try:
        return b"--parent-pid" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


class Site:
    """A home with its folders, and the processes that work on it."""

    def __init__(self, root: Path, database: str) -> None:
        self.root = root
        self.database = database
        self.home = root / "home"
        self.queue = root / "queue"
        self.completed = root / "completed"
        self.rejected = root / "rejected"
        self.queue.mkdir()
        self.processes: list[Process] = []

    def start(self, command: str, *options: str) -> Process:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
        environ["PYSCHED_DATABASE"] = self.database
        number = len(self.processes)
        process = Process([command, "--home", str(self.home), *options], self.root / f"{command}.{number}.log", environ)
        self.processes.append(process)
        return process

    def node(self, *options: str, workers: int = 4) -> Process:
        folders = ["--queue", str(self.queue), "--completed", str(self.completed)]
        process = self.start("run", "--workers", str(workers), *folders, *options)
        process.await_message("ready")
        return process

    def drop(self, name: str, content: str | bytes | dict[str, Any]) -> None:
        """A `.task` file as writers should make it: elsewhere, then renamed."""
        if isinstance(content, dict):
            content = json.dumps(content)
        temporary = self.root / f"{name}.tmp"
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.rename(temporary, self.queue / f"{name}.task")

    def done(self, task_id: str) -> dict[str, Any]:
        """The content of `ID.done`, awaited."""
        path = self.completed / f"{task_id}.done"
        wait_until(path.exists, f"{path.name}; the node said:\n{self.processes[-1].messages if self.processes else ''}")
        record: dict[str, Any] = json.loads(path.read_bytes())
        return record

    def all_done(self, count: int) -> dict[str, dict[str, Any]]:
        """All `.done` files by id, awaited."""
        wait_until(lambda: len(self.done_ids()) >= count, f"{count} .done files")
        return {task_id: self.done(task_id) for task_id in self.done_ids()}

    def done_ids(self) -> list[str]:
        if not self.completed.exists():
            return []
        return [name.removesuffix(".done") for name in os.listdir(self.completed) if name.endswith(".done")]

    def reason(self, stem: str) -> str:
        path = self.rejected / f"{stem}.reason"
        wait_until(path.exists, path.name)
        wait_until(lambda: os.path.lexists(self.rejected / f"{stem}.task"), "the rejected file")
        return path.read_text()

    def leftovers(self) -> list[int]:
        """Processes that carry a mark of this site's jobs in their environment."""
        mark = f"{self.home}/logs/".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                environ = Path("/proc", name, "environ").read_bytes()
                if b"PYSCHED_TASK_ID=" in environ and mark in environ:
                    found.append(int(name))
        return found

    def temporary_files(self) -> list[str]:
        return [name for name in os.listdir(self.completed) if name.startswith(".")]

    def close(self) -> None:
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()
        for pid in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    site = Site(tmp_path, database_url)
    try:
        yield site
    finally:
        site.close()
