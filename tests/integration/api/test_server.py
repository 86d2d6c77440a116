"""`serve` as a process of its own: its line, its address file, its signals, a port that is taken."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from pysched.api.app import create_app
from pysched.client import Client
from pysched.home import ADDRESS_FILE
from pysched.task import parse_task
from tests.integration.api.conftest import TOKEN, Api

SERVE = """
import sys
from pysched import settings
from pysched.api.server import serve
from pysched.errors import PyschedError
from pysched.store.store import Store

config = settings.load(home=sys.argv[1], host=sys.argv[2], port=int(sys.argv[3]))
try:
    with Store(sys.argv[4]) as store:
        serve(store, config)
except PyschedError as error:
    sys.exit(f"scheduler: {error}")
print("stopped")
"""


@contextmanager
def server(api: Api, home: Path, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[subprocess.Popen[str]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(home), host, str(port), api.database_url],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_stops_in_order(api: Api, tmp_path: Path, number: signal.Signals) -> None:
    with server(api, tmp_path) as process:
        line = first_line(process)
        published = json.loads((tmp_path / ADDRESS_FILE).read_text())
        assert line == f"listening on {published['url']}\n"
        assert published["pid"] == process.pid
        with Client(home=tmp_path) as client:  # finds the address and the token by itself
            assert client.health()["database"] == "ok"
            accepted = client.submit({"command": "true"})
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")
    assert api.store.get(accepted["id"])["status"] == "queued"
    assert not (tmp_path / ADDRESS_FILE).exists()


def test_a_request_under_way_is_answered_before_it_stops(api: Api, tmp_path: Path) -> None:
    sending = threading.Event()
    go_on = threading.Event()

    def body() -> Iterator[bytes]:
        yield b'{"id": "during-the-stop",'
        sending.set()
        assert go_on.wait(60)
        yield b'"rank": 1}'

    statuses: list[int] = []

    def submit(url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        statuses.append(httpx.post(f"{url}/submit", content=body(), headers=headers, timeout=60).status_code)

    with server(api, tmp_path) as process:
        url = first_line(process).removeprefix("listening on ").strip()
        thread = threading.Thread(target=submit, args=(url, (tmp_path / "token").read_text().strip()))
        thread.start()
        assert sending.wait(60)
        process.send_signal(signal.SIGTERM)
        refused = _await_refusal(url)
        go_on.set()
        thread.join()
        out, _ = process.communicate(timeout=60)
    assert refused
    assert (statuses, process.returncode, out) == ([201], 0, "stopped\n")
    assert api.store.get("during-the-stop")["rank"] == 1


def test_a_second_signal_stops_at_once(api: Api, tmp_path: Path) -> None:
    with server(api, tmp_path) as process:
        url = first_line(process).removeprefix("listening on ").strip()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as held:
            token = (tmp_path / "token").read_text().strip()
            head = f"POST /submit HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
            held.sendall(
                f"{head}Content-Type: application/json\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            assert b"100 Continue" in held.recv(1000)  # the request is under way, and would be for ten seconds
            process.send_signal(signal.SIGTERM)
            assert _await_refusal(url)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (tmp_path / ADDRESS_FILE).exists()


def test_what_has_stopped_takes_nothing_more(api: Api) -> None:
    app = create_app(api.store, api.settings, token=TOKEN)

    async def stopped() -> None:
        async with app.router.lifespan_context(app):
            pass
        with pytest.raises(asyncio.QueueFull):
            await app.state.context.acceptor.accept(parse_task({"id": "late"}), 1)

    asyncio.run(stopped())


def test_a_port_that_is_taken_is_one_line(api: Api, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with server(api, tmp_path, port=port) as process:
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err == (
        f"scheduler: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "is another server running? choose another --port, or 0 for a free one\n"
    )
    assert not (tmp_path / ADDRESS_FILE).exists()


def test_a_host_that_is_not_ours_is_one_line(api: Api, tmp_path: Path) -> None:
    with server(api, tmp_path, host="192.0.2.1") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("scheduler: cannot listen on 192.0.2.1:0: ")
    assert err.count("\n") == 1


def test_a_token_file_that_others_can_read_is_one_line(api: Api, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o644)
    with server(api, tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "chmod 600" in err
    assert err.count("\n") == 1


def _await_refusal(url: str) -> bool:
    """Whether the server has closed its port, so that its stop has begun; bounded."""
    host, port = url.removeprefix("http://").split(":")
    for _ in range(10_000):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:
            continue  # closed between this connection and its acceptance
    return False
