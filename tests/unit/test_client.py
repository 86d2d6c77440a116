"""The HTTP client against scripted answers: what it sends, what it makes of what comes back."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest

from pysched.client import RETRIES, Client
from pysched.discovery import discover
from pysched.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    ServerError,
    ServerUnreachable,
    SettingsError,
    TaskError,
    Unauthorized,
)
from pysched.model import is_valid_id
from pysched.task import Task, parse_task

URL = "http://127.0.0.1:1"
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment and no home of the person who runs the tests; no waiting between tries."""
    for name in ("PYSCHED_URL", "PYSCHED_TOKEN", "PYSCHED_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pysched.discovery.default_home", lambda: tmp_path / "default-home")
    monkeypatch.setattr("pysched.client.BACKOFF_S", 0.0)
    monkeypatch.setattr("pysched.client.RETRY_AFTER_MAX_S", 0.0)


def client(handler: Handler, *, retries: int = RETRIES) -> Client:
    return Client(URL, "secret", retries=retries, transport=httpx.MockTransport(handler))


def accepted(request: httpx.Request) -> httpx.Response:
    return httpx.Response(201, json={"id": json.loads(request.content)["id"], "status": "queued"})


def problem(status: int, detail: str = "no", **more: object) -> Handler:
    document = {"type": "about:blank", "title": "T", "status": status, "detail": detail, "errors": [], **more}
    return lambda _request: httpx.Response(
        status, content=json.dumps(document), headers={"Content-Type": "application/problem+json"}
    )


class Flaky:
    """Fails with each of `failures` in turn, then answers by `handler`; keeps the requests."""

    def __init__(self, *failures: Exception | httpx.Response, then: Handler = accepted) -> None:
        self.failures = list(failures)
        self.then = then
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if not self.failures:
            return self.then(request)
        failure = self.failures.pop(0)
        if isinstance(failure, Exception):
            raise failure
        return failure


class TestSubmit:
    def test_an_id_is_made_once_so_that_a_lost_answer_submits_once(self) -> None:
        server = Flaky(httpx.ReadTimeout("lost"), httpx.RemoteProtocolError("closed"), httpx.Response(503))
        answer = client(server).submit({"command": "true"})
        bodies = [request.content for request in server.requests]
        assert len(bodies) == 4
        assert len(set(bodies)) == 1
        assert is_valid_id(answer["id"])

    def test_a_given_id_stays(self) -> None:
        assert client(accepted).submit({"id": "mine"})["id"] == "mine"

    def test_a_task_object_keeps_its_content(self) -> None:
        server = Flaky()
        task = parse_task({"command": ["echo", "ü"], "priority": "high", "retry_delay_s": 0.25})
        client(server).submit(task)
        sent = parse_task(server.requests[0].content)
        assert sent.spec() == task.spec()
        assert Task.model_validate(sent).id is not None

    def test_the_callers_mapping_is_left_alone(self) -> None:
        task = {"command": "true"}
        client(accepted).submit(task)
        assert task == {"command": "true"}

    @pytest.mark.parametrize("value", [float("nan"), object(), b"bytes"])
    def test_what_is_no_json_never_leaves(self, value: object) -> None:
        server = Flaky()
        with pytest.raises(TaskError, match="is no JSON"):
            client(server).submit({"params": {"x": value}})
        assert server.requests == []

    def test_many_go_in_one_request_a_line_each(self) -> None:
        def batch(request: httpx.Request) -> httpx.Response:
            lines = [json.loads(line) for line in request.content.splitlines()]
            return httpx.Response(
                201, json={"created": 3, "tasks": [{"id": x["id"], "status": "queued"} for x in lines]}
            )

        server = Flaky(then=batch)
        answer = client(server).submit_many({"name": f"line\u2028{n}"} for n in range(3))
        assert len(server.requests) == 1
        assert server.requests[0].headers["content-type"] == "application/x-ndjson"
        assert len({each["id"] for each in answer}) == 3


class TestRepetition:
    @pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ReadError("reset")])
    def test_it_is_bounded(self, failure: Exception) -> None:
        server = Flaky(*[failure] * 10)
        with pytest.raises(ServerUnreachable, match=f"no server answers at {URL}") as caught:
            client(server, retries=2).stats()
        assert len(server.requests) == 3
        assert caught.value.exit_code == 4

    def test_retrying_a_task_is_asked_once_when_the_answer_is_lost(self) -> None:
        server = Flaky(httpx.ReadTimeout("lost"))
        with pytest.raises(ServerUnreachable):
            client(server).retry("a")
        assert len(server.requests) == 1

    def test_retrying_a_task_is_asked_again_when_nothing_arrived(self) -> None:
        server = Flaky(httpx.ConnectError("refused"), then=lambda _: httpx.Response(200, json={"status": "queued"}))
        assert client(server).retry("a") == {"status": "queued"}

    def test_a_refusal_is_final(self) -> None:
        server = Flaky(then=problem(422, errors=[{"field": "name", "message": "is wrong"}]))
        with pytest.raises(TaskError):
            client(server).submit({})
        assert len(server.requests) == 1

    def test_an_unhealthy_server_has_answered(self) -> None:
        server = Flaky(then=lambda _: httpx.Response(503, json={"status": "unavailable"}))
        assert client(server).health() == {"status": "unavailable"}
        assert len(server.requests) == 1


class TestErrors:
    def test_a_task_error_keeps_fields_and_index(self) -> None:
        handler = problem(422, errors=[{"field": "nam", "message": "did you mean name?", "index": 7}])
        with pytest.raises(TaskError, match=r"^task 7: nam: did you mean name\?$") as caught:
            client(handler).submit_many([{}])
        assert caught.value.index == 7
        assert caught.value.problems[0].field == "nam"

    @pytest.mark.parametrize(
        ("handler", "error"),
        [
            (problem(400), InputError),
            (problem(401), Unauthorized),
            (problem(404), NotFoundError),
            (problem(409, id="a"), ConflictError),
            (problem(422), ServerError),
            (problem(500), ServerError),
            (problem(503), ServerError),
            (lambda _: httpx.Response(502, text="<html>"), ServerError),
            (lambda _: httpx.Response(200, text="<html>"), ServerError),
            (lambda _: httpx.Response(307, headers={"Location": "http://elsewhere/"}), ServerError),
        ],
    )
    def test_each_status_has_its_error(self, handler: Handler, error: type[Exception]) -> None:
        with pytest.raises(error):
            client(handler).get("a")

    def test_the_id_cannot_leave_its_place_in_the_path(self) -> None:
        server = Flaky(then=problem(404))
        with pytest.raises(NotFoundError):
            client(server).get("../stats?x=1#y")
        assert server.requests[0].url.raw_path == b"/tasks/..%2Fstats%3Fx%3D1%23y"


class TestWait:
    def test_each_is_asked_until_it_has_ended(self) -> None:
        states = {"a": ["queued", "running", "succeeded"], "b": ["failed"]}

        def handler(request: httpx.Request) -> httpx.Response:
            left = states[request.url.path.rsplit("/", 1)[-1]]
            return httpx.Response(200, json={"status": left.pop(0) if len(left) > 1 else left[0]})

        ended = client(handler).wait(["a", "b", "a"])
        assert {task_id: task["status"] for task_id, task in ended.items()} == {"a": "succeeded", "b": "failed"}

    def test_it_gives_up_in_time(self) -> None:
        with pytest.raises(TimeoutError, match="a is running after 0 s"):
            client(lambda _: httpx.Response(200, json={"status": "running"})).wait(["a"], 0)


def test_every_page_is_listed() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        before = int(request.url.params.get("before", "3"))
        return httpx.Response(
            200, json={"tasks": [{"id": str(before - 1)}], "next": before - 1 if before > 1 else None}
        )

    assert [task["id"] for task in client(handler).list_all(status="failed")] == ["2", "1", "0"]


def test_a_log_chunk_comes_with_the_next_offset() -> None:
    server = Flaky(then=lambda _: httpx.Response(200, content=b"\xff\n", headers={"X-Next-Offset": "7"}))
    assert client(server).logs("a", "stderr", 5, attempt=2) == (b"\xff\n", 7)
    assert dict(server.requests[0].url.params) == {"stream": "stderr", "offset": "5", "attempt": "2"}


class TestDiscovery:
    @staticmethod
    def home(path: Path, *, url: str | None = None, token: str | None = None) -> Path:
        path.mkdir()
        if url:
            (path / "api.json").write_text(json.dumps({"url": url, "pid": 1}))
        if token:
            (path / "token").write_text(token + "\n")
        return path

    def test_nothing_is_known(self) -> None:
        address = discover()
        assert (address.url, address.token) == ("http://127.0.0.1:8321", None)

    def test_the_default_home_says_where(self, tmp_path: Path) -> None:
        self.home(tmp_path / "default-home", url="http://127.0.0.1:9", token="t")
        address = discover()
        assert (address.url, address.token) == ("http://127.0.0.1:9", "t")

    def test_arguments_before_environment_before_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        home = self.home(tmp_path / "home", url="http://h:1", token="home")
        monkeypatch.setenv("PYSCHED_HOME", str(home))
        assert discover() == discover(home=home)
        assert (discover().url, discover().token) == ("http://h:1", "home")
        monkeypatch.setenv("PYSCHED_URL", "http://e:1/")
        monkeypatch.setenv("PYSCHED_TOKEN", "env")
        assert (discover().url, discover().token) == ("http://e:1", "env")
        assert (discover(url="http://a:1").url, discover(token="arg").token) == ("http://a:1", "arg")

    def test_the_default_homes_token_stays_on_this_machine(self, tmp_path: Path) -> None:
        self.home(tmp_path / "default-home", url="http://10.0.0.1:5", token="t")
        assert discover(url="http://elsewhere:8321").token is None
        assert discover(url="http://127.0.0.1:7").token == "t"
        assert discover(url="http://[::1]:7").token == "t"
        assert discover(url="http://10.0.0.1:5").token == "t"

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"url": 5}'])
    def test_a_broken_address_file_is_as_none(self, tmp_path: Path, content: str) -> None:
        home = self.home(tmp_path / "home")
        (home / "api.json").write_text(content)
        assert discover(home=home).url == "http://127.0.0.1:8321"

    @pytest.mark.parametrize("url", ["localhost:8321", "ftp://a", "http://", "http://a:b", "http://[x"])
    def test_a_url_that_is_none_is_one_line(self, url: str) -> None:
        with pytest.raises(SettingsError, match="write http://HOST:PORT"):
            discover(url=url)

    @pytest.mark.parametrize("token", ["a b", "ü", "a\nb"])
    def test_a_token_that_no_header_carries(self, token: str) -> None:
        with pytest.raises(SettingsError, match="token"):
            discover(token=token)

    def test_the_token_is_not_in_the_repr(self) -> None:
        assert "secret" not in repr(discover(token="secret"))

    def test_no_proxy_stands_before_loopback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as proxy:
            proxy.bind(("127.0.0.1", 0))
            proxy.listen()
            proxy.setblocking(False)
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
            monkeypatch.delenv("NO_PROXY", raising=False)
            monkeypatch.delenv("no_proxy", raising=False)
            with Client("http://127.0.0.1:1", retries=0, timeout_s=1) as local, pytest.raises(ServerUnreachable):
                local.stats()
            with pytest.raises(BlockingIOError):  # nobody came
                proxy.accept()


def test_importing_it_is_cheap() -> None:
    script = "import sys, pysched.client; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"fastapi", "psycopg", "numpy", "pydantic", "starlette", "uvicorn"}.isdisjoint(loaded)
