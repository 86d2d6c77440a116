"""The client for asyncio: the same as the blocking one, method for method; here is what differs, the I/O."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx2 as httpx
import pytest

from pysched import AsyncClient, Client
from pysched.errors import NotFoundError, ServerUnreachable
from tests.unit.client.test_blocking import URL, stream

T = TypeVar("T")
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pysched.discovery.default_home", lambda: tmp_path / "default-home")
    monkeypatch.setattr("pysched.client.calls.BACKOFF_S", 0.0)


def run(handler: Handler, use: Callable[[AsyncClient], Awaitable[T]], *, retries: int = 4) -> T:
    async def main() -> T:
        async with AsyncClient(URL, "secret", retries=retries, transport=httpx.MockTransport(handler)) as client:
            return await use(client)

    return asyncio.run(main())


async def collected(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def test_both_clients_can_do_the_same() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if callable(value) and not name.startswith("_")
        }

    assert methods(AsyncClient) == methods(Client)


def test_an_answer_that_got_lost_is_asked_for_again_under_the_same_id() -> None:
    bodies: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        if len(bodies) < 3:
            raise httpx.ReadTimeout("lost")
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(201, json={"id": json.loads(request.content)["id"], "status": "queued"})

    accepted = run(handler, lambda client: client.submit({"command": "true"}))
    assert len(bodies) == 3
    assert len(set(bodies)) == 1
    assert accepted["id"] == json.loads(bodies[0])["id"]


def test_a_retry_is_asked_for_once_unless_nothing_arrived() -> None:
    failures: list[Exception] = [httpx.ConnectError("refused"), httpx.ReadTimeout("lost")]

    def handler(request: httpx.Request) -> httpx.Response:
        raise failures.pop(0)

    with pytest.raises(ServerUnreachable, match="lost"):
        run(handler, lambda client: client.retry("a"))
    assert failures == []


def test_errors_are_the_same() -> None:
    document = {"detail": "no such task", "errors": []}
    with pytest.raises(NotFoundError, match="no such task"):
        run(lambda _: httpx.Response(404, json=document), lambda client: client.get("a"))


def test_every_page_is_listed() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.params.get_list("status") == ["failed", "running"]
        before = int(request.url.params.get("before", "2"))
        return httpx.Response(200, json={"tasks": [{"id": str(before)}], "next": before - 1 or None})

    found = run(handler, lambda client: collected(client.tasks(status=["failed", "running"])))
    assert [task["id"] for task in found] == ["2", "1"]


def test_waiting() -> None:
    states = ["running", "succeeded"]
    ended = run(
        lambda _: httpx.Response(200, json={"id": "a", "status": states.pop(0)}), lambda client: client.wait(["a"])
    )
    assert ended["a"]["status"] == "succeeded"


def test_they_come_in_the_order_in_which_they_end() -> None:
    streams = [stream(), stream(("ready", {}), ("tasks", {"tasks": [{"id": "b", "status": "failed"}]}))]
    states = {"a": "failed", "b": "running"}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/events":
            return httpx.Response(200, content=streams.pop(0).content)
        task_id = request.url.path[7:]
        return httpx.Response(200, json={"id": task_id, "status": states[task_id]})

    ended = run(handler, lambda client: collected(client.as_completed(["b", "a"])))
    assert [task["id"] for task in ended] == ["a", "b"]


def test_giving_up_in_time() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/events":
            return httpx.Response(200, content=stream(("ready", {})).content)
        return httpx.Response(200, json={"status": "queued"})

    with pytest.raises(TimeoutError, match="a is queued"):
        run(handler, lambda client: collected(client.as_completed(["a"], 0)))


def test_following_a_log() -> None:
    streams = [stream(("log", {"text": "a"}), ids=["1:1"]), stream(("log", {"base64": "/w=="}), ("end", {}))]
    seen: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("last-event-id"))
        return httpx.Response(200, content=streams.pop(0).content)

    assert run(handler, lambda client: collected(client.logs("a", follow=True))) == [b"a", b"\xff"]
    assert seen == [None, "1:1"]


def test_a_refused_stream_is_an_error() -> None:
    document = {"detail": "no such task", "errors": []}
    with pytest.raises(NotFoundError):
        run(lambda _: httpx.Response(404, json=document), lambda client: collected(client.logs("a", follow=True)))
