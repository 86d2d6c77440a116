"""The HTTP client against scripted answers: what it sends, what it makes of what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pysched.client import Client
from pysched.client.blocking import RETRIES
from pysched.client.wire import Lost, NotSent, Request, Response
from pysched.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    ServerError,
    ServerUnreachable,
    TaskError,
    Unauthorized,
)
from pysched.model import is_valid_id
from pysched.task import Task, parse_task

URL = "http://127.0.0.1:1"
Handler = Callable[[Request], Response]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment and no home of the person who runs the tests; no waiting between tries."""
    for name in ("PYSCHED_URL", "PYSCHED_TOKEN", "PYSCHED_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pysched.discovery.default_home", lambda: tmp_path / "default-home")
    monkeypatch.setattr("pysched.client.calls.BACKOFF_S", 0.0)
    monkeypatch.setattr("pysched.client.calls.RETRY_AFTER_MAX_S", 0.0)


class Scripted:
    """A server that is a function; its streams give lines and then break off."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def exchange(self, request: Request) -> Response:
        return self._handler(request)

    @contextmanager
    def stream(self, request: Request, deadline: float) -> Iterator[tuple[Response, Iterator[bytes]]]:
        response = self._handler(request)
        yield response, iter(response.content.splitlines(keepends=True) if response.status == 200 else [])

    def close(self) -> None:
        pass


def client(handler: Handler, *, retries: int = RETRIES) -> Client:
    return Client(URL, "secret", retries=retries, transport=Scripted(handler))


def answer(status: int, document: object) -> Response:
    return Response(status, {}, json.dumps(document).encode())


def accepted(request: Request) -> Response:
    return answer(201, {"id": json.loads(request.content or b"")["id"], "status": "queued"})


def problem(status: int, detail: str = "no", **more: object) -> Handler:
    document = {"type": "about:blank", "title": "T", "status": status, "detail": detail, "errors": [], **more}
    return lambda _request: answer(status, document)


class Flaky:
    """Fails with each of `failures` in turn, then answers by `handler`; keeps the requests."""

    def __init__(self, *failures: Exception | Response, then: Handler = accepted) -> None:
        self.failures = list(failures)
        self.then = then
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        if not self.failures:
            return self.then(request)
        failure = self.failures.pop(0)
        if isinstance(failure, Exception):
            raise failure
        return failure


class TestSubmit:
    def test_an_id_is_made_once_so_that_a_lost_answer_submits_once(self) -> None:
        server = Flaky(Lost("timed out"), NotSent("refused"), Response(503))
        task = client(server).submit({"command": "true"})
        bodies = [request.content for request in server.requests]
        assert len(bodies) == 4
        assert len(set(bodies)) == 1
        assert is_valid_id(task["id"])

    def test_a_given_id_stays(self) -> None:
        assert client(accepted).submit({"id": "mine"})["id"] == "mine"

    def test_a_task_object_keeps_its_content(self) -> None:
        server = Flaky()
        task = parse_task({"command": ["echo", "ü"], "priority": "high", "retry_delay_s": 0.25})
        client(server).submit(task)
        sent = parse_task(server.requests[0].content or b"")
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
        def batch(request: Request) -> Response:
            lines = [json.loads(line) for line in (request.content or b"").splitlines()]
            return answer(201, {"created": 3, "tasks": [{"id": x["id"], "status": "queued"} for x in lines]})

        server = Flaky(then=batch)
        tasks = client(server).submit_many({"name": f"line\u2028{n}"} for n in range(3))
        assert len(server.requests) == 1
        assert server.requests[0].headers["Content-Type"] == "application/x-ndjson"
        assert len({each["id"] for each in tasks}) == 3


class TestRepetition:
    @pytest.mark.parametrize("failure", [NotSent("refused"), Lost("reset")])
    def test_it_is_bounded(self, failure: Exception) -> None:
        server = Flaky(*[failure] * 10)
        with pytest.raises(ServerUnreachable, match=f"no server answers at {URL}") as caught:
            client(server, retries=2).stats()
        assert len(server.requests) == 3
        assert caught.value.exit_code == 4

    def test_retrying_a_task_is_asked_once_when_the_answer_is_lost(self) -> None:
        server = Flaky(Lost("timed out"))
        with pytest.raises(ServerUnreachable):
            client(server).retry("a")
        assert len(server.requests) == 1

    def test_retrying_a_task_is_asked_again_when_nothing_arrived(self) -> None:
        server = Flaky(NotSent("refused"), then=lambda _: answer(200, {"status": "queued"}))
        assert client(server).retry("a") == {"status": "queued"}

    def test_a_refusal_is_final(self) -> None:
        server = Flaky(then=problem(422, errors=[{"field": "name", "message": "is wrong"}]))
        with pytest.raises(TaskError):
            client(server).submit({})
        assert len(server.requests) == 1

    def test_an_unhealthy_server_has_answered(self) -> None:
        server = Flaky(then=lambda _: answer(503, {"status": "unavailable"}))
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
            (lambda _: Response(502, {}, b"<html>"), ServerError),
            (lambda _: Response(200, {}, b"<html>"), ServerError),
            (lambda _: Response(307, {"location": "http://elsewhere/"}), ServerError),
        ],
    )
    def test_each_status_has_its_error(self, handler: Handler, error: type[Exception]) -> None:
        with pytest.raises(error):
            client(handler).get("a")

    def test_the_id_cannot_leave_its_place_in_the_path(self) -> None:
        server = Flaky(then=problem(404))
        with pytest.raises(NotFoundError):
            client(server).get("../stats?x=1#y")
        assert server.requests[0].target == "/tasks/..%2Fstats%3Fx%3D1%23y"


class TestWait:
    def test_each_is_asked_until_it_has_ended(self) -> None:
        states = {"a": ["queued", "running", "succeeded"], "b": ["failed"]}

        def handler(request: Request) -> Response:
            left = states[request.path.rsplit("/", 1)[-1]]
            return answer(200, {"status": left.pop(0) if len(left) > 1 else left[0]})

        ended = client(handler).wait(["a", "b", "a"])
        assert {task_id: task["status"] for task_id, task in ended.items()} == {"a": "succeeded", "b": "failed"}

    def test_it_gives_up_in_time(self) -> None:
        with pytest.raises(TimeoutError, match="a is running after 0 s"):
            client(lambda _: answer(200, {"status": "running"})).wait(["a"], 0)

    def test_they_come_in_the_order_in_which_they_end(self) -> None:
        """`a` had ended before one listened, `c` ends while the stream is broken, `b` last."""
        states = {"a": "failed", "b": "running", "c": "running"}
        streams: list[list[tuple[str, object]]] = [
            [("ready", {})],
            [("ready", {}), ("tasks", {"tasks": [{"id": "x", "status": "failed"}]}), ("reset", {})],
            [("ready", {}), ("tasks", {"tasks": [{"id": "b", "status": "succeeded"}]})],
        ]

        def handler(request: Request) -> Response:
            if request.path != "/events":
                return answer(200, {"id": request.path[7:], "status": states[request.path[7:]]})
            if len(streams) == 1:
                states["c"] = "cancelled"
            return stream(*streams.pop(0))

        ended = [task["id"] for task in client(handler).as_completed(["a", "b", "c"])]
        assert ended == ["a", "c", "b"]

    def test_waiting_for_the_first_gives_up_in_time(self) -> None:
        def handler(request: Request) -> Response:
            return stream(("ready", {})) if request.path == "/events" else answer(200, {"status": "queued"})

        with pytest.raises(TimeoutError, match="a is queued"):
            list(client(handler).as_completed(["a"], 0))

    def test_many_are_looked_up_page_by_page(self) -> None:
        ids = [str(number) for number in range(200)]
        server = Flaky(
            then=lambda request: (
                answer(
                    200,
                    {
                        "tasks": [{"id": each, "status": "succeeded"} for each in ids],
                        "next": None,
                    },
                )
                if request.path == "/tasks"
                else stream(("ready", {}))
                if request.path == "/events"
                else answer(200, {"id": request.path[7:], "status": "succeeded"})
            )
        )
        assert {task["id"] for task in client(server).as_completed(ids)} == set(ids)
        assert sum(request.path == "/tasks" for request in server.requests) == 1

    def test_a_stream_that_always_breaks_is_an_error(self) -> None:
        server = Flaky(then=lambda _: stream())
        with pytest.raises(ServerUnreachable, match="ended the stream"):
            list(client(server, retries=2).as_completed(["a"]))
        assert len(server.requests) == 3


def stream(*events: tuple[str, object], ids: Sequence[str] = ()) -> Response:
    lines = [": hello", ""]
    for number, (kind, data) in enumerate(events):
        lines += [f"event: {kind}", *[f"id: {each}" for each in ids[number : number + 1]], f"data: {json.dumps(data)}"]
        lines += [":", ""]
    return Response(200, {"content-type": "text/event-stream"}, "\n".join([*lines, ""]).encode())


class TestFilters:
    def test_every_page_is_listed_also_after_an_empty_one(self) -> None:
        pages = {"3": ["2"], "2": [], "1": ["0"]}

        def handler(request: Request) -> Response:
            before = str(request.params.get("before", "3"))
            return answer(200, {"tasks": [{"id": each} for each in pages[before]], "next": int(before) - 1 or None})

        assert [task["id"] for task in client(handler).tasks(status="failed")] == ["2", "0"]

    def test_what_is_given_is_sent_and_nothing_else(self) -> None:
        server = Flaky(then=lambda _: answer(200, {"tasks": [], "next": None}))
        since = datetime(2026, 1, 1, tzinfo=timezone.utc)
        client(server).list(status=["failed", "running"], tag=None, submitted_since=since, limit=5)
        assert server.requests[0].target == (
            "/tasks?status=failed&status=running&submitted_since=2026-01-01T00%3A00%3A00%2B00%3A00&limit=5"
        )

    def test_bulk_goes_on_to_the_end_and_adds_up(self) -> None:
        answers = [
            {"retried": 2, "refused": 1, "errors": [{"id": "a"}], "next": 7},
            {"retried": 1, "refused": 1, "errors": [{"id": "b"}], "next": None},
        ]
        server = Flaky(then=lambda _: answer(200, answers.pop(0)))
        total = client(server).retry_all(status="failed")
        assert total == {"retried": 3, "refused": 2, "errors": [{"id": "a"}, {"id": "b"}]}
        assert [request.target for request in server.requests] == [
            "/tasks/retry?status=failed", "/tasks/retry?status=failed&before=7",
        ]  # fmt: skip

    def test_all_is_said_aloud(self) -> None:
        server = Flaky(then=lambda _: answer(200, {"cancelled": 0, "next": None}))
        client(server).cancel_all()
        assert server.requests[0].target == "/tasks/cancel?all=true"


class TestLogs:
    def test_a_piece_comes_with_the_next_offset(self) -> None:
        server = Flaky(then=lambda _: Response(200, {"x-next-offset": "7", "x-attempt": "2"}, b"\xff\n"))
        chunk = client(server).log("a", "stderr", 5, attempt=2)
        assert (chunk.data, chunk.next, chunk.attempt) == (b"\xff\n", 7, 2)
        assert dict(server.requests[0].params) == {"stream": "stderr", "offset": "5", "attempt": "2"}

    def test_all_of_one_attempt_is_read(self) -> None:
        log = b"0123456789"

        def handler(request: Request) -> Response:
            offset = int(str(request.params["offset"]))
            data = log[offset : offset + 4]
            return Response(200, {"x-next-offset": str(offset + len(data)), "x-attempt": "3"}, data)

        server = Flaky(then=handler)
        assert b"".join(client(server).logs("a")) == log
        assert [request.params.get("attempt") for request in server.requests] == [None, "3", "3", "3"]

    def test_following_goes_on_where_the_stream_broke(self) -> None:
        streams = [
            stream(("log", {"text": "ä"}), ids=["1:0"]),
            stream(("attempt", {"attempt": 2}), ("log", {"base64": "/w=="}), ("end", {}), ids=["", "2:0"]),
        ]
        server = Flaky(then=lambda _: streams.pop(0))
        assert list(client(server).logs("a", follow=True)) == ["ä".encode(), b"\xff"]
        assert [request.headers.get("Last-Event-ID") for request in server.requests] == [None, "1:0"]


def test_importing_it_is_cheap() -> None:
    script = "import sys; from pysched import Client; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"fastapi", "psycopg", "numpy", "pydantic", "starlette", "uvicorn", "httpx2", "httpx", "rich"}.isdisjoint(
        loaded
    )
