"""The API's address outlives the API: a reload, a crash and a stop, as those see them who connect meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .conftest import DEADLINE_S, Process, Site, wait_until

Address = tuple[str, int]


def address_of(site: Site) -> Address:
    """Where the API says that it listens, awaited."""
    path = site.home / "api.json"
    wait_until(path.exists, "the API to answer")
    parts = urlsplit(json.loads(path.read_text())["url"])
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def reload(site: Site, process: Process) -> None:
    """Returns when everything serves again."""
    said, listened = process.messages.count(" ready "), process.messages.count("listening on")
    command = [sys.executable, "-m", "pysched.cli", "reload", "--home", str(site.home)]
    assert subprocess.run(command, check=False).returncode == 0
    wait_until(lambda: process.messages.count(" ready ") > said, "another node")
    wait_until(lambda: process.messages.count("listening on") > listened, "another API")


def get(address: Address) -> bytes:
    """An answer to a request on a connection of its own; empty if that was closed without."""
    with socket.create_connection(address, timeout=DEADLINE_S) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def refuses(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=DEADLINE_S).close()
    except ConnectionRefusedError:
        return True
    return False


def api_pid(process: Process) -> int:
    def found() -> list[int]:
        return [pid for pid in process.children() if b"\0api\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    pid: int = wait_until(found, "an API")[0]
    return pid


class Knocking:
    """A client that connects again and again, until the end of the block."""

    def __init__(self, address: Address) -> None:
        self.answers: list[bytes] = []
        self.errors: list[OSError] = []
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Knocking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(DEADLINE_S)

    def _run(self) -> None:
        while not self._stopping.wait(0.01):
            try:
                self.answers.append(get(self._address))
            except OSError as error:
                self.errors.append(error)

    def await_answers(self, more: int = 3) -> None:
        until = len(self.answers) + more
        wait_until(lambda: self.errors or len(self.answers) >= until, "answers")


@pytest.fixture
def up(site: Site) -> Process:
    process = site.start("up", "--port", "0", "--queue", str(site.queue), "--completed", str(site.completed))
    process.await_message(" ready ")
    address_of(site)
    return process


def test_nobody_is_refused_while_the_api_is_loaded_anew_or_killed(site: Site, up: Process) -> None:
    address, began = address_of(site), int(time.time())
    with Knocking(address) as client:
        client.await_answers()
        for _ in range(2):
            reload(site, up)
            assert address_of(site) == address
            client.await_answers()
        before = api_pid(up)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: api_pid(up) != before, "another API")
        client.await_answers()
    assert address_of(site) == address
    assert [error for error in client.errors if not isinstance(error, ConnectionResetError)] == []
    assert len(client.errors) <= 1  # the connection that the killed one had accepted
    answers = [answer for answer in client.answers if answer]
    assert len(client.answers) - len(answers) <= 1
    assert {answer.split(b"\r\n", 1)[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    dates = [line[6:].decode() for line in answers[-1].split(b"\r\n") if line.lower().startswith(b"date: ")]
    assert [began <= parsedate_to_datetime(date).timestamp() <= time.time() for date in dates] == [True]
    assert up.terminate() == 0
    assert refuses(address)
    assert not (site.home / "api.json").exists()


def test_jobs_inherit_no_socket_and_while_they_are_waited_for_nobody_else_waits(site: Site, up: Process) -> None:
    gate = site.root / "gate"
    os.mkfifo(gate)
    address = address_of(site)
    reload(site, up)
    site.drop("job", {"command": f"ls -l /proc/self/fd; read line < {gate}"})
    (log,) = wait_until(lambda: [path for path in site.home.glob("logs/*/job.1.out") if path.read_bytes()], "its log")
    up.popen.send_signal(signal.SIGTERM)
    up.await_message("draining")
    wait_until(lambda: refuses(address), "the API to be gone")
    gate.write_text("go\n")
    assert up.popen.wait(DEADLINE_S) == 0
    assert b"socket:" not in log.read_bytes()
    assert site.done("job")["attempts"] == 1


def test_a_reload_heeds_another_address(site: Site, up: Process) -> None:
    before = address_of(site)
    (site.home / "pysched.toml").write_text('host = "127.0.0.2"\n')
    reload(site, up)
    after = wait_until(lambda: (found := address_of(site)) != before and found, "another address")
    assert after[0] == "127.0.0.2"
    assert get(after).startswith(b"HTTP/1.1 200 OK")
    wait_until(lambda: refuses(before), "the old address to be free")
    (site.home / "pysched.toml").write_text("")
    reload(site, up)
    wait_until(lambda: address_of(site)[0] == "127.0.0.1", "the first host")
    assert get(address_of(site)).startswith(b"HTTP/1.1 200 OK")
