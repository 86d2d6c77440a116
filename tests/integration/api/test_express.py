"""POST /submit past uvicorn and FastAPI: the same answers as the ordinary way gives, whatever the connection does."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from pysched.api.acceptor import Acceptor
from pysched.api.app import ControlPlane, create_app
from pysched.api.express import BODY_BYTES, Submission
from pysched.model import new_id
from pysched.settings import Settings
from pysched.task import Task
from tests.integration.api.conftest import TOKEN, Api, client
from tests.integration.api.control_plane import running
from tests.integration.api.test_security import connection

DEADLINE_S = 60.0
PLAIN = "Content-Type: application/json\r\n"
ORDINARY = "Content-Type: application/json; charset=utf-8\r\n"  # the same, which express leaves to others


def request(api: Api, body: bytes, headers: str = PLAIN, *, token: str = TOKEN, line: str = "POST /submit") -> bytes:
    host = api.url.removeprefix("http://")
    head = f"{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answers(channel: socket.socket, count: int) -> list[tuple[int, dict[str, str], Any]]:
    """The next ones that come."""
    channel.settimeout(DEADLINE_S)
    file = channel.makefile("rb")
    found = []
    for _ in range(count):
        status = int(file.readline().split()[1])
        headers = dict(iter(lambda: file.readline().decode().strip().partition(": ")[::2], ("", "")))
        found.append((status, headers, json.loads(file.read(int(headers["content-length"])))))
    return found


def exchanged(api: Api, data: bytes, count: int = 1) -> list[tuple[int, dict[str, str], Any]]:
    with connection(api) as channel:
        channel.sendall(data)
        return answers(channel, count)


@pytest.fixture
def express(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies of the submissions that went this way to their end."""
    seen: list[bytes] = []
    original = Submission._deliver

    def deliver(self: Submission, verdict: Any) -> None:
        seen.append(self.body)
        original(self, verdict)

    monkeypatch.setattr(Submission, "_deliver", deliver)
    return seen


def test_a_usual_submission_goes_this_way(api: Api, express: list[bytes]) -> None:
    ((status, _, answer),) = exchanged(api, request(api, b'{"rank": 3}'))
    assert (status, answer["status"], express) == (201, "queued", [b'{"rank": 3}'])
    assert api.store.get(answer["id"])["rank"] == 3
    assert api.submit(rank=4)  # and what our own client sends
    assert len(express) == 2


@pytest.mark.parametrize(
    "content",
    [
        {"id": "express-new"},
        {"id": "express-taken"},
        {"id": "express-taken", "rank": 5},
        {"after": ["express-taken"]},
        {"after": ["nobody"]},
        {"delay_s": 60},
        {"nonsense": 1},
    ],
)
def test_both_ways_answer_the_same(api: Api, content: dict[str, Any], express: list[bytes]) -> None:
    api.http.post("/submit", json={"id": "express-taken"})
    del express[:]
    found = []
    for headers in (PLAIN, ORDINARY):
        own = {**content, "id": content["id"] + headers[-4]} if content.get("id") == "express-new" else content
        ((status, head, answer),) = exchanged(api, request(api, json.dumps(own).encode(), headers))
        if status == 201:
            answer["id"] = "…"
        found.append((status, sorted((name, value) for name, value in head.items() if name != "date"), answer))
    assert found[0] == found[1]
    assert len(express) == (0 if found[0][0] == 422 and "nonsense" in content else 1)


@pytest.mark.parametrize(
    ("headers", "how", "status"),
    [
        (PLAIN + "Origin: http://evil.example\r\n", {}, 403),
        (PLAIN, {"token": "wrong"}, 401),
        (PLAIN + "Authorization: Bearer x\r\n", {}, 401),
        (PLAIN + "Content-Encoding: gzip\r\n", {}, 415),
        ("Content-Type: text/plain\r\n", {}, 415),
        (PLAIN, {"line": "POST /submit?x=1"}, 422),
        (PLAIN, {"line": "PUT /submit"}, 405),
        (PLAIN + "Host: evil\r\n", {}, 400),
    ],
)
def test_what_is_not_usual_goes_through_the_gate(
    api: Api, headers: str, how: dict[str, Any], status: int, express: list[bytes]
) -> None:
    with connection(api) as channel:
        channel.sendall(request(api, b"{}", headers, **how))
        assert int(channel.recv(65536).split()[1]) == status
    assert express == []


def test_a_token_that_may_only_look(api: Api, express: list[bytes]) -> None:
    token = api.http.post("/tokens", json={"name": "express-reader", "scope": "read"}).json()["token"]
    submitter = api.http.post("/tokens", json={"name": "express-submitter", "scope": "submit"}).json()["token"]
    for _ in range(2):  # the second time both are known
        assert exchanged(api, request(api, b"{}", token=token))[0][0] == 403
        assert exchanged(api, request(api, b"{}", token=submitter))[0][0] == 201
    assert len(express) >= 1
    api.http.delete("/tokens/express-submitter")
    assert exchanged(api, request(api, b"{}", token=submitter))[0][0] == 401


def test_requests_on_one_connection_are_answered_in_order(api: Api) -> None:
    ids = [new_id() for _ in range(6)]
    bodies = [json.dumps({"id": each}).encode() for each in ids]
    sent = b"".join(request(api, body, (PLAIN, ORDINARY)[place % 2]) for place, body in enumerate(bodies))
    found = exchanged(api, sent + request(api, b"", "", line="GET /stats"), 7)
    assert [status for status, _, _ in found] == [201] * 6 + [200]
    assert [answer["id"] for _, _, answer in found[:6]] == ids


def test_a_body_in_pieces_and_a_connection_that_is_to_be_closed(api: Api, express: list[bytes]) -> None:
    data = request(api, b'{"rank": 12}', PLAIN + "Connection: close\r\n")
    with connection(api) as channel:
        for place in range(0, len(data), 50):
            channel.sendall(data[place : place + 50])
        ((status, headers, _),) = answers(channel, 1)
        assert (status, headers["connection"]) == (201, "close")
        assert channel.recv(1) == b""
    assert express == [b'{"rank": 12}']


def test_a_large_body_and_one_of_unknown_length(api: Api, express: list[bytes]) -> None:
    large = json.dumps({"command": "x" * BODY_BYTES}).encode()
    assert exchanged(api, request(api, large))[0][0] == 201
    chunked = request(api, b"", PLAIN + "Transfer-Encoding: chunked\r\n").replace(b"Content-Length: 0\r\n", b"")
    assert exchanged(api, chunked + b"2\r\n{}\r\n0\r\n\r\n")[0][0] == 201
    assert express == []


@contextmanager
def held(api: Api) -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """A control plane whose store has been asked, and answers when it may."""
    asked, may = threading.Event(), threading.Event()

    def accept(tasks: Sequence[Task], **how: Any) -> Any:
        asked.set()
        assert may.wait(DEADLINE_S)
        return api.store.accept(tasks, **how)

    try:
        with api.served_with(accept=accept) as http_client:
            yield str(http_client.base_url), asked, may
    finally:
        may.set()


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def test_a_client_that_goes_away_harms_nobody(api: Api) -> None:
    task_id = new_id()
    with held(api) as (url, asked, may):
        with connected(url) as channel:
            channel.sendall(request(api, json.dumps({"id": task_id}).encode()))  # Host: any port is ours
            assert asked.wait(DEADLINE_S)
        may.set()
        deadline = time.monotonic() + DEADLINE_S
        while not api.http.get("/tasks", params={"id": task_id}).json()["tasks"]:
            assert time.monotonic() < deadline
        with client(url) as other:
            assert other.post("/submit", json={}).status_code == 201


def test_what_is_under_way_is_answered_before_the_server_stops(api: Api) -> None:
    with held(api) as (url, asked, may):
        channel = connected(url)
        channel.sendall(request(api, b"{}"))
        assert asked.wait(DEADLINE_S)
        threading.Timer(0.05, may.set).start()  # by then it is stopping, or not: both are answered
    with channel:
        ((status, _, _),) = answers(channel, 1)
        assert status == 201
        assert channel.recv(1) == b""


def test_a_full_acceptor_is_an_unavailable_server(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Acceptor, "take", lambda *_: False)
    assert exchanged(api, request(api, b"{}"))[0][0] == 503


def test_without_a_token_where_none_is_needed(api: Api, express: list[bytes]) -> None:
    app = create_app(api.store, Settings(home=api.settings.home, no_auth=True), token=None)
    assert isinstance(app, ControlPlane)
    with running(app) as url, client(url) as http_client:
        del http_client.headers["Authorization"]
        assert http_client.post("/submit", json={}).status_code == 201
    assert express == [b"{}"]


def test_it_is_counted_as_any_request(api: Api) -> None:
    def count() -> float:
        lines = api.http.get("/metrics").text.splitlines()
        name = 'pysched_http_request_seconds_count{method="POST",route="/submit",status="201"}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    before = count()
    exchanged(api, request(api, b"{}"))
    exchanged(api, request(api, b"{}", ORDINARY))
    assert count() == before + 2


def test_an_idle_connection_is_closed(api: Api) -> None:
    app = create_app(api.store, api.settings, token=TOKEN)
    with running(app, keep_alive_s=0.05) as url:
        for headers in (PLAIN, ORDINARY):
            with connected(url) as channel:
                channel.sendall(request(api, b"{}", headers))
                assert answers(channel, 1)[0][0] == 201
                assert channel.recv(1) == b""
