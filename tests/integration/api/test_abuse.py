"""What comes over a bare socket: each is refused or dropped, and costs next to nothing."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from pysched.api.app import create_app
from pysched.api.protocol import HEAD_BYTES, HEADERS, Protocol
from tests.integration.api.conftest import TOKEN, Api, client
from tests.integration.api.control_plane import running
from tests.integration.api.test_security import connection, raw, request_head

MIB = 1024 * 1024
DEADLINE_S = 60.0


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def flood(api: Api, head: bytes, piece: bytes, count: int) -> bytes:
    """What comes back to a client that sends on and on, until it is cut off."""
    with connection(api) as channel:
        with suppress(ConnectionError):
            channel.sendall(head)
            for _ in range(count):
                channel.sendall(piece)
        received = b""
        with suppress(ConnectionError):
            while chunk := channel.recv(65536):
                received += chunk
        return received


@pytest.fixture
def flat() -> Iterator[None]:
    """The memory of this process, which is the server's, does not grow by what is sent."""
    process = psutil.Process()
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < 64 * MIB


@pytest.mark.usefixtures("flat")
class TestFloods:
    def test_a_hundred_thousand_headers(self, api: Api) -> None:
        head = request_head(api, "GET /health", "")[:-2]
        lines = b"".join(b"X-%d: y\r\n" % number for number in range(1000))
        answer = flood(api, head, lines, 100)
        assert answer == b"" or status(answer) == 431  # nothing, if it was still sending when it was cut off

    def test_headers_up_to_the_limit(self, api: Api) -> None:
        own = request_head(api, "GET /health", "").count(b"\r\n") - 2
        most = "".join(f"X-{number}: y\r\n" for number in range(HEADERS - own - 1)) + "Connection: close\r\n"
        assert status(raw(api, request_head(api, "GET /health", most))) == 200
        assert status(raw(api, request_head(api, "GET /health", f"X: y\r\n{most}"))) == 431

    @pytest.mark.parametrize("line", [f"GET /{'x' * HEAD_BYTES}", "GET /health"])
    def test_a_long_head(self, api: Api, line: str) -> None:
        long = "" if "x" in line else f"X: {'y' * HEAD_BYTES}\r\n"
        answer = raw(api, request_head(api, line, long))
        assert status(answer) == 431
        document = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (document["status"], document["type"]) == (431, "urn:pysched:problem:headers-too-large")

    def test_an_endless_line(self, api: Api) -> None:
        answer = flood(api, b"GET /", b"x" * MIB, 64)
        assert answer == b"" or 400 <= status(answer) < 500

    @pytest.mark.parametrize("path", ["/submit", "/submit/batch", "/tokens"])
    def test_a_body_of_a_gigabyte(self, api: Api, path: str) -> None:
        stated = request_head(api, f"POST {path}", f"Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n")
        answer = flood(api, stated, b" " * MIB, 1024)
        assert answer == b"" or status(answer) == 413

    def test_a_body_of_a_gigabyte_for_nobody(self, api: Api) -> None:
        head = request_head(api, "POST /nowhere", f"Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n")
        answer = flood(api, head, b" " * MIB, 64)
        assert answer == b"" or 400 <= status(answer) < 500

    @pytest.mark.parametrize("content", ["[" * 900_000, '{"params":' * 90_000, '{"params": {"a": ' + "[" * 30_000])
    @pytest.mark.parametrize("path", ["/submit", "/submit/batch"])
    def test_deep_json(self, api: Api, path: str, content: str) -> None:
        answer = api.http.post(path, content=content.encode(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 422


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /submit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"GET \xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_is_refused(api: Api, data: bytes) -> None:
    assert 400 <= status(raw(api, data)) < 500


def test_a_foreign_page_deletes_nothing(api: Api) -> None:
    api.http.post("/tokens", json={"name": "kept", "scope": "read"})
    answer = api.http.delete("/tokens/kept", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert "kept" in api.http.get("/tokens").text


class TestSlowClients:
    def test_half_a_head_is_dropped(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Protocol, "head_s", 0.1)
        assert status(raw(api, b"GET /health HTTP/1.1\r\nHost:")) == 408
        assert status(raw(api, b"")) == 408  # and so is silence

    def test_half_a_second_head_is_dropped(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        with connection(api) as channel:
            channel.sendall(request_head(api, "GET /nowhere", ""))
            answer = b""
            while not answer.endswith(b"}"):
                answer += channel.recv(65536)
            assert status(answer) == 404
            monkeypatch.setattr(Protocol, "head_s", 0.1)
            channel.sendall(b"GET /nowhere")
            assert status(channel.recv(65536)) == 408
            assert channel.recv(65536) == b""

    def test_half_a_body_is_dropped(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Protocol, "check_s", 0.1)
        monkeypatch.setattr(Protocol, "grace_s", 0.2)
        head = request_head(api, "POST /submit", "Content-Type: application/json\r\nContent-Length: 16\r\n")
        assert status(raw(api, head + b'{"name"')) == 408

    def test_a_body_that_comes_is_not(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Protocol, "check_s", 0.01)
        monkeypatch.setattr(Protocol, "grace_s", 0.0)
        monkeypatch.setattr(Protocol, "body_rate", 0)
        head = request_head(
            api, "POST /submit", "Content-Type: application/json\r\nContent-Length: 16\r\nConnection: close\r\n"
        )
        with connection(api) as channel:
            channel.sendall(head + b"{")
            for byte in b'"name" : "x"  }':
                time.sleep(0.02)  # several looks
                channel.sendall(bytes([byte]))
            assert status(channel.recv(65536)) == 201

    def test_who_does_not_read_is_dropped(self, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task_id = api.task_with_logs(tmp_path, stdout=b"x" * MIB)
        monkeypatch.setattr(Protocol, "write_s", 0.1)
        with running(create_app(api.store, api.settings, token=TOKEN)) as url, client(url) as http_client:
            host, port = url.removeprefix("http://").split(":")
            with socket.socket() as channel:
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                channel.connect((host, int(port)))
                head = request_head(api, f"GET /tasks/{task_id}/logs", "")
                channel.sendall(head * 20)  # and never reads what comes
                gone = select.poll()
                gone.register(channel, 0)  # errors and hang-ups alone
                deadline = time.monotonic() + DEADLINE_S
                with suppress(ConnectionError):
                    while not gone.poll(100):  # a word now and then, to which a closed connection is an error
                        assert time.monotonic() < deadline
                        channel.send(b"\r\n")
            assert http_client.get("/health").status_code == 200


class TestStopping:
    """What becomes of a connection that the server took just before it was told to stop."""

    def stopped(self, api: Api, request: bytes) -> bytes:
        """The answer to a request that comes then, until the end of the connection."""
        with ExitStack() as server, ExitStack() as stack:
            url = server.enter_context(running(create_app(api.store, api.settings, token=TOKEN)))
            host, port = url.removeprefix("http://").split(":")
            address = (host, int(port))
            channel = stack.enter_context(socket.create_connection(address, timeout=DEADLINE_S))
            with client(url) as http_client:
                assert http_client.get("/health").status_code == 200  # taken later, so the other one was taken, too
            stop = threading.Thread(target=server.pop_all().close)
            stop.start()
            deadline = time.monotonic() + DEADLINE_S
            with suppress(ConnectionError):
                while time.monotonic() < deadline:
                    socket.create_connection(address, timeout=DEADLINE_S).close()
            answer = b""
            with suppress(ConnectionError):
                channel.sendall(request)
                while chunk := channel.recv(65536):
                    answer += chunk
            channel.close()
            stop.join(DEADLINE_S)
            assert not stop.is_alive()
            return answer

    @pytest.mark.parametrize(
        ("line", "headers", "body", "expected"),
        [
            ("GET /health", "", b"", 200),
            ("POST /submit", "Content-Type: application/json\r\nContent-Length: 12\r\n", b'{"name":"x"}', 201),
            ("POST /submit", "Content-Type: application/json\r\nContent-Length: 12\r\n", b'{"nane":"x"}', 422),
        ],
    )
    def test_a_request_on_its_way_is_answered(
        self, api: Api, monkeypatch: pytest.MonkeyPatch, line: str, headers: str, body: bytes, expected: int
    ) -> None:
        monkeypatch.setattr(Protocol, "stop_s", DEADLINE_S)
        answer = self.stopped(api, request_head(api, line, headers) + body)
        assert status(answer) == expected
        assert b"connection: close" in answer.lower()

    def test_silence_is_closed(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Protocol, "stop_s", 0.01)
        assert self.stopped(api, b"") == b""
