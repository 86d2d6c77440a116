"""What waits for something to happen: long polls, events, logs that are followed; and that all of it ends in order."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest

from pysched.api.app import create_app
from pysched.api.logs import _whole_characters
from pysched.changes import Position
from tests.integration.api.conftest import TOKEN, Api, assert_problem, client
from tests.integration.api.control_plane import running

Event = tuple[str, Any, str | None]  # name, data, id


class Stream:
    """One SSE answer, read event by event."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        name, data, event_id = "", None, None
        for line in self._lines:
            key, _, value = line.partition(": ")
            match key:
                case "event":
                    name = value
                case "data":
                    data = json.loads(value)
                case "id":
                    event_id = value
                case "" if name:
                    yield name, data, event_id
                    name, data, event_id = "", None, None

    def next(self) -> Event:
        return next(iter(self))

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> str:
        """The id of the batch with a task that is as wanted."""
        for name, data, event_id in self:
            if name == "tasks" and any(wanted(task) for task in data["tasks"]):
                assert event_id is not None
                return event_id
        raise AssertionError("the stream ended")


@contextmanager
def opened(http_client: httpx.Client, path: str, **how: Any) -> Iterator[Stream]:
    with http_client.stream("GET", path, **how) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer)


class TestWait:
    def test_it_is_answered_when_the_task_ends(self, api: Api) -> None:
        task_id = api.submit()
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(api.http.get(f"/tasks/{task_id}?wait=60").json()))
        thread.start()
        api.worker.run(task_id)
        thread.join(60)
        assert [answer["status"] for answer in answers] == ["succeeded"]

    def test_it_is_answered_as_it_stands_when_the_time_is_over(self, api: Api) -> None:
        assert api.http.get(f"/tasks/{api.submit()}?wait=0.01").json()["status"] == "queued"

    def test_an_end_that_was_not_told_is_seen_all_the_same(self, api: Api) -> None:
        watcher = api.store.watcher()
        deaf = SimpleNamespace(
            watch=watcher.watch, unwatch=watcher.unwatch, forget=watcher.forget, standings=watcher.standings,
            listen=watcher.listen, hush=watcher.hush, close=watcher.close,
            read=lambda _since: watcher.read(None),
        )  # fmt: skip
        with api.served_with(watcher=lambda: deaf) as http_client:
            task_id = api.submit()
            answers: list[Any] = []
            thread = threading.Thread(
                target=lambda: answers.append(http_client.get(f"/tasks/{task_id}?wait=60").json())
            )
            thread.start()
            api.worker.run(task_id)
            thread.join(60)
        assert [answer["status"] for answer in answers] == ["succeeded"]

    def test_what_is_wrong_is_named(self, api: Api) -> None:
        assert_problem(api.http.get("/tasks/none?wait=1"), 404)
        assert_problem(api.http.get(f"/tasks/{api.submit()}?wait=61"), 422)
        assert_problem(api.http.get(f"/tasks/{api.submit()}?wait=nan"), 422)


class TestEvents:
    def test_what_happens_is_told_in_order_to_all_who_listen(self, api: Api) -> None:
        with opened(api.http, "/events") as one, opened(api.http, "/events?status=succeeded&status=failed") as other:
            assert one.next()[:2] == other.next()[:2] == ("ready", {})
            task_id = api.submit()
            api.worker.run(task_id)
            seen: list[str] = []
            for name, data, _ in one:
                assert name == "tasks"
                seen += [task["status"] for task in data["tasks"] if task["id"] == task_id]
                if "succeeded" in seen:
                    break
            assert seen == ["queued", "running", "succeeded"]
            _, data, _ = other.next()
            (task,) = [task for task in data["tasks"] if task["id"] == task_id]
            assert task == {"id": task_id, "status": "succeeded", "reason": None, "attempts": 1, "exit_code": 0}

    def test_a_listener_that_comes_back_hears_what_it_missed(self, api: Api) -> None:
        with opened(api.http, "/events") as stream:
            stream.next()
            first = api.submit()
            last = stream.until(lambda task: task["id"] == first)
        missed = api.submit()
        with opened(api.http, "/events", headers={"Last-Event-ID": last}) as stream:
            assert stream.next()[0] == "ready"
            _, data, event_id = stream.next()
            assert [task["id"] for task in data["tasks"]] == [missed]
            assert event_id not in (None, last)

    @pytest.mark.parametrize("last", ["", "x", "1-1:1:", "1-9:1:", "99999999999999-1:999999999999999999:", "1-5:9:7,6"])
    def test_one_whose_place_is_not_known_is_told_to_look_again(self, api: Api, last: str) -> None:
        with opened(api.http, "/events", headers={"Last-Event-ID": last}) as stream:
            assert [stream.next()[0] for _ in range(2)] == ["ready", "reset"]

    def test_streams_end_when_the_server_stops(self, api: Api) -> None:
        task_id = api.submit()
        ready = threading.Barrier(4)

        def listen(url: str, path: str, first: str | None) -> None:
            with client(url) as http_client, opened(http_client, path) as stream:
                if first is not None:
                    assert stream.next()[0] == first
                ready.wait(60)
                ended.append([name for name, _, _ in stream])

        def wait(url: str) -> None:
            with client(url) as http_client:
                ready.wait(60)
                ended.append(http_client.get(f"/tasks/{task_id}?wait=60").status_code)

        ended: list[Any] = []
        with running(create_app(api.store, api.settings, token=TOKEN)) as url:
            threads = [
                threading.Thread(target=listen, args=(url, "/events", "ready")),
                threading.Thread(target=listen, args=(url, f"/tasks/{task_id}/logs/follow", None)),
                threading.Thread(target=wait, args=(url,)),
            ]
            for thread in threads:
                thread.start()
            ready.wait(60)
            # The last request is on its way or arrives as the server closes; either is an end.
            assert httpx.get(f"{url}/health").status_code == 200
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


class TestFollow:
    def test_all_bytes_come_and_then_the_end(self, api: Api, tmp_path: Path) -> None:
        task_id = api.submit(max_retries=1, retry_delay_s=0)
        paths = {number: tmp_path / f"{task_id}.{number}.out" for number in (1, 2)}

        def find(_task: str, attempt: int) -> Any:
            return SimpleNamespace(stdout=str(paths[attempt]), stderr=str(tmp_path / "none"))

        with (
            api.served_with(log_files=find) as http_client,
            opened(http_client, f"/tasks/{task_id}/logs/follow") as stream,
        ):
            api.worker.start(task_id)
            assert stream.next()[:2] == ("attempt", {"attempt": 1})
            paths[1].write_bytes("Grüße\n".encode()[:3])  # half a character
            assert stream.next() == ("log", {"attempt": 1, "offset": 0, "next": 2, "text": "Gr"}, "1:2")
            with paths[1].open("ab") as file:
                file.write("Grüße\n".encode()[3:])
            assert stream.next()[1]["text"] == "üße\n"
            api.worker.finish(task_id, exit_code=1, stdout=paths[1])
            paths[2].write_bytes(b"\xff\xfe")
            api.worker.run(task_id, stdout=paths[2])
            assert [event[:2] for event in stream] == [
                ("attempt", {"attempt": 2}),
                ("log", {"attempt": 2, "offset": 0, "next": 2, "base64": base64.b64encode(b"\xff\xfe").decode()}),
                ("end", {"status": "succeeded", "reason": None, "exit_code": 0}),
            ]

    def test_it_goes_on_where_it_broke(self, api: Api, tmp_path: Path) -> None:
        content = b"0123456789" * 20_000
        task_id = api.task_with_logs(tmp_path, stdout=content)
        path = f"/tasks/{task_id}/logs/follow"
        with opened(api.http, path) as stream:
            _, _, place = stream.next()
        assert place is not None
        with opened(api.http, path, headers={"Last-Event-ID": place}) as stream:
            rest = "".join(data["text"] for name, data, _ in stream if name == "log")
        assert rest.encode() == content[int(place.split(":")[1]) :]
        with opened(api.http, path, params={"offset": len(content) - 3}) as stream:
            assert [data.get("text") for _, data, _ in stream] == ["789", None]

    def test_one_attempt_alone(self, api: Api, tmp_path: Path) -> None:
        task_id = api.submit(max_retries=1, retry_delay_s=0)
        for number in (1, 2):
            (tmp_path / f"{number}").write_bytes(b"%d" % number)
            api.worker.run(task_id, exit_code=1, stdout=tmp_path / f"{number}")
        with opened(api.http, f"/tasks/{task_id}/logs/follow?attempt=1") as stream:
            assert [(name, data.get("text")) for name, data, _ in stream] == [("log", "1"), ("end", None)]
        assert_problem(api.http.get(f"/tasks/{task_id}/logs/follow?attempt=3"), 404)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"abc", b"abc"),
        ("aü".encode(), "aü".encode()),
        ("aü".encode()[:-1], b"a"),
        ("a€".encode()[:-1], b"a"),
        ("a€".encode()[:-2], b"a"),
        ("a😀".encode()[:-1], b"a"),
        ("ü".encode()[:-1], b""),
        (b"\x80\x80\x80\x80\x80", b"\x80\x80\x80\x80\x80"),
        (b"", b""),
    ],
)
def test_characters_are_not_cut(data: bytes, whole: bytes) -> None:
    assert _whole_characters(data) == whole


@pytest.mark.parametrize("text", ["1-1:1:", "5-3:9:3,8", f"{10**14}-1:{2**62}:"])
def test_positions_are_read_back(text: str) -> None:
    assert str(Position.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1", "-1:1:", "1-0:1:", "1-2:1:", "1-1:5:5", "1-2:5:1", "1-1:5:3,3", "1-1:1:\n", "1-1:1:x"]
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None
