"""HTTP for the blocking client, against a real server on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pysched.client import Client
from pysched.client.wire import Connections, Lost, NotSent, Request
from pysched.discovery import Address
from pysched.errors import ServerUnreachable


class _Handler(BaseHTTPRequestHandler):
    """Answers with what it was asked; `/once` closes the connection behind the answer without saying so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(f"{self.path} {self.headers['Authorization']} {self.client_address[1]}".encode())

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"] or 0)))

    def _answer(self, content: bytes) -> None:
        if self.path.endswith("/lost"):
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if self.path.endswith("/once"):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def wire(url: str) -> Iterator[Connections]:
    connections = Connections(Address(f"{url}/behind", "secret"), 60)
    try:
        yield connections
    finally:
        connections.close()


def port(wire: Connections, path: str = "/a", *, repeatable: bool = True) -> str:
    """From which port the request came: the same for the same connection."""
    return wire.exchange(Request("GET", path, repeatable=repeatable)).content.split()[-1].decode()


def test_path_parameters_and_token_arrive(wire: Connections) -> None:
    answer = wire.exchange(Request("GET", "/a%2Fb", {"x": ["1", "ü"], "y": "2"}))
    assert answer.content.startswith(b"/behind/a%2Fb?x=1&x=%C3%BC&y=2 Bearer secret ")
    assert answer.headers["content-length"] == str(len(answer.content))


def test_a_body_arrives(wire: Connections) -> None:
    assert wire.exchange(Request("POST", "/", content=b"body")).content == b"body"
    assert wire.exchange(Request("POST", "/")).content == b""


def test_a_connection_is_used_again(wire: Connections) -> None:
    assert port(wire) == port(wire)


def test_what_must_not_arrive_twice_never_meets_a_connection_that_may_be_closing(wire: Connections) -> None:
    assert port(wire) != port(wire, repeatable=False)


def test_a_connection_that_the_server_closed_is_not_used(wire: Connections) -> None:
    port(wire, "/once")
    (connection,) = wire._idle
    assert connection.sock is not None
    connection.sock.settimeout(60)
    assert connection.sock.recv(1, socket.MSG_PEEK) == b""  # its end has come
    assert port(wire).isdecimal()


def test_threads_have_a_connection_each_and_few_are_kept(wire: Connections) -> None:
    threads = [threading.Thread(target=port, args=(wire,)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < len(wire._idle) <= 16


def test_an_answer_that_is_lost_is_told_from_a_request_that_was_not_sent(wire: Connections) -> None:
    with pytest.raises(Lost):
        wire.exchange(Request("GET", "/lost"))
    nobody = Connections(Address("http://127.0.0.1:1", None), 60)
    with pytest.raises(NotSent, match="refused"):
        nobody.exchange(Request("GET", "/"))


def test_no_proxy_stands_before_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with Client("http://127.0.0.1:1", retries=0) as local, pytest.raises(ServerUnreachable):
            local.stats()
        with pytest.raises(BlockingIOError):  # nobody came
            proxy.accept()


def test_a_proxy_is_told_the_whole_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    far = Connections(Address("http://scheduler.invalid:8321", None), 60)
    assert far.exchange(Request("GET", "/stats")).content.startswith(b"http://scheduler.invalid:8321/stats ")
    far.close()
    monkeypatch.setenv("no_proxy", "scheduler.invalid")
    with pytest.raises(NotSent):
        Connections(Address("http://scheduler.invalid:8321", None), 60).exchange(Request("GET", "/stats"))
