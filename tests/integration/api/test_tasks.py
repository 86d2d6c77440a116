"""Reading and steering: /tasks, logs, cancel, retry, /stats, /nodes, /queue, /health."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pysched.api.app import create_app
from pysched.api.logs import LOG_BYTES
from pysched.errors import DatabaseUnreachable
from pysched.model import State, new_id
from pysched.settings import Settings
from pysched.store.store import Store
from tests.database import NewDatabase
from tests.integration.api.conftest import TOKEN, Api, assert_problem
from tests.integration.api.conftest import client as http_client
from tests.integration.api.control_plane import running

BAD_IDS = ["..", ".hidden", "%2e%2e", "a%20b", "a%0a", "-a", "a" * 129, "a%00", "%ff"]


class TestShow:
    def test_a_task_has_its_content_and_its_attempts(self, api: Api) -> None:
        task_id = api.submit(command="exit 3", max_retries=0, tags=["x"])
        api.worker.run(task_id, exit_code=3)
        task = api.http.get(f"/tasks/{task_id}").json()
        assert (task["id"], task["status"], task["reason"]) == (task_id, "failed", "exit 3")
        assert [attempt["exit_code"] for attempt in task["attempts"]] == [3]

    def test_an_unknown_one_is_not_found(self, api: Api) -> None:
        task_id = new_id()
        assert task_id in assert_problem(api.http.get(f"/tasks/{task_id}"), 404)["detail"]

    @pytest.mark.parametrize("task_id", BAD_IDS)
    @pytest.mark.parametrize(
        "route", ["GET /tasks/{}", "GET /tasks/{}/logs", "POST /tasks/{}/cancel", "POST /tasks/{}/retry"]
    )
    def test_what_is_no_id_is_refused(self, api: Api, route: str, task_id: str) -> None:
        method, path = route.format(task_id).split(" ")
        answer = api.raw_path(method, path)
        assert answer.status_code in {404, 422}
        assert_problem(answer, answer.status_code)

    @pytest.mark.parametrize("path", ["/tasks/a/b", "/tasks/..%2f..%2fetc%2fpasswd", "/tasks/a/logs/x", "/tasks//logs"])
    def test_a_path_in_the_id_leads_nowhere(self, api: Api, path: str) -> None:
        assert_problem(api.raw_path("GET", path), 404)

    @pytest.mark.parametrize("route", ["DELETE /tasks/a", "PUT /submit", "GET /submit", "POST /stats", "PATCH /health"])
    def test_a_method_that_is_none_names_the_right_one(self, api: Api, route: str) -> None:
        method, path = route.split(" ")
        answer = api.http.request(method, path)
        document = assert_problem(answer, 405)
        assert answer.headers["allow"] in document["detail"]


class TestList:
    def test_pages_hold_every_task_once_newest_first(self, api: Api) -> None:
        ids = [api.submit(type="ml", priority="LOW") for _ in range(7)]
        seen: list[str] = []
        before: int | None = None
        while True:
            query: dict[str, str | int] = {"type": "ml", "priority": "low", "limit": 3}
            if before is not None:
                query["before"] = before
            page = api.http.get("/tasks", params=query).json()
            seen += [task["id"] for task in page["tasks"]]
            if before is None:
                api.submit(type="ml", priority="LOW")  # what arrives meanwhile moves no page
            before = page["next"]
            if before is None:
                break
        assert [task_id for task_id in seen if task_id in ids] == ids[::-1]
        assert len(seen) == len(set(seen))

    def test_filters_narrow(self, api: Api) -> None:
        high, low = api.submit(priority="HIGH"), api.submit(priority="LOW")
        api.http.post(f"/tasks/{high}/cancel")

        def listed(**query: str) -> set[str]:
            return {task["id"] for task in api.http.get("/tasks", params={"limit": "1000", **query}).json()["tasks"]}

        assert high in listed(status="cancelled")
        assert low not in listed(status="cancelled")
        assert low in listed(priority="low", type="system", status="queued")
        assert low not in listed(priority="HIGH")
        assert low not in listed(type="ml")

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("status=done", "status"),
            ("status=", "status"),
            ("priority=9", "priority"),
            ("type=gpu", "type"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=x", "limit"),
            ("before=-1", "before"),
            ("before=99999999999999999999", "before"),
            ("stauts=failed", "stauts"),
            ("%00=1", "\0"),
        ],
    )
    def test_a_wrong_filter_is_named(self, api: Api, query: str, field: str) -> None:
        document = assert_problem(api.http.get(f"/tasks?{query}"), 422)
        assert [error["field"] for error in document["errors"]] == [field]

    def test_the_nearest_filter_is_named(self, api: Api) -> None:
        assert "did you mean status?" in api.http.get("/tasks?stauts=failed").json()["detail"]


class TestLogs:
    def test_bytes_come_as_they_are_and_continue_at_the_next_offset(self, api: Api, tmp_path: Path) -> None:
        content = b"\x00\xff<script>\r\n" * 3
        task_id = api.task_with_logs(tmp_path, stdout=content, stderr=b"err")
        whole = api.http.get(f"/tasks/{task_id}/logs")
        assert whole.content == content
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert whole.headers["x-content-type-options"] == "nosniff"
        assert (whole.headers["x-next-offset"], whole.headers["x-attempt"]) == (str(len(content)), "1")
        rest = api.http.get(f"/tasks/{task_id}/logs", params={"stream": "stdout", "offset": 5})
        assert rest.content == content[5:]
        assert api.http.get(f"/tasks/{task_id}/logs", params={"stream": "stderr"}).content == b"err"

    def test_the_end_is_empty_and_stays_where_it_is(self, api: Api, tmp_path: Path) -> None:
        task_id = api.task_with_logs(tmp_path, stdout=b"12345")
        for offset in (5, 6, 2**62):
            answer = api.http.get(f"/tasks/{task_id}/logs", params={"offset": offset})
            assert (answer.status_code, answer.content, answer.headers["x-next-offset"]) == (200, b"", str(offset))

    def test_a_chunk_is_bounded(self, api: Api, tmp_path: Path) -> None:
        content = os.urandom(LOG_BYTES + 10)
        task_id = api.task_with_logs(tmp_path, stdout=content)
        first = api.http.get(f"/tasks/{task_id}/logs")
        assert first.headers["x-next-offset"] == str(LOG_BYTES)
        second = api.http.get(f"/tasks/{task_id}/logs", params={"offset": LOG_BYTES})
        assert first.content + second.content == content

    def test_before_the_first_attempt_there_is_nothing_yet(self, api: Api) -> None:
        answer = api.http.get(f"/tasks/{api.submit()}/logs")
        assert (answer.status_code, answer.content) == (200, b"")
        assert (answer.headers["x-next-offset"], answer.headers["x-attempt"]) == ("0", "0")

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("stream=stdin", "stream"),
            ("stream=../x", "stream"),
            ("offset=-1", "offset"),
            ("offset=x", "offset"),
            (f"offset={2**63}", "offset"),
            ("attempt=0", "attempt"),
            (f"attempt={2**40}", "attempt"),
            ("strem=stderr", "strem"),
        ],
    )
    def test_a_wrong_parameter_is_named(self, api: Api, tmp_path: Path, query: str, field: str) -> None:
        task_id = api.task_with_logs(tmp_path, stdout=b"x")
        document = assert_problem(api.http.get(f"/tasks/{task_id}/logs?{query}"), 422)
        assert [error["field"] for error in document["errors"]] == [field]

    def test_each_attempt_has_its_own_and_the_newest_comes_by_itself(self, api: Api, tmp_path: Path) -> None:
        task_id = api.submit(max_retries=3, retry_delay_s=0)
        for number in (1, 2):
            (tmp_path / f"{number}.out").write_bytes(b"%d" % number)
            api.worker.run(task_id, exit_code=1, stdout=tmp_path / f"{number}.out")
        assert api.http.get(f"/tasks/{task_id}/logs").content == b"2"
        assert api.http.get(f"/tasks/{task_id}/logs?attempt=1").content == b"1"
        assert_problem(api.http.get(f"/tasks/{task_id}/logs?attempt=3"), 404)

    def test_an_attempt_that_runs_shows_what_it_has_written_so_far(self, api: Api, tmp_path: Path) -> None:
        task_id = api.submit()
        api.worker.start(task_id)
        assert api.http.get(f"/tasks/{task_id}/logs").content == b""  # nobody told this server where to look

        def find(asked: str, attempt: int) -> Any:
            stem = tmp_path / f"{asked}.{attempt}"
            return SimpleNamespace(stdout=f"{stem}.out", stderr=f"{stem}.err")

        with api.served_with(log_files=find) as client:
            path = f"/tasks/{task_id}/logs"
            assert_problem(client.get(path), 404)  # on another machine
            (tmp_path / f"{task_id}.1.out").write_bytes(b"so far")
            answer = client.get(path)
            assert (answer.content, answer.headers["x-attempt"]) == (b"so far", "1")
            assert_problem(client.get(f"{path}?stream=stderr"), 404)
        api.worker.finish(task_id)

    def test_an_attempt_that_left_no_log_wrote_nothing(self, api: Api, tmp_path: Path) -> None:
        task_id = api.submit()
        api.worker.run(task_id)
        with api.served_with(log_files=lambda *_: SimpleNamespace(stdout=str(tmp_path / "gone"))) as client:
            answer = client.get(f"/tasks/{task_id}/logs")
            assert (answer.status_code, answer.content, answer.headers["x-attempt"]) == (200, b"", "1")
            assert "event: end" in client.get(f"/tasks/{task_id}/logs/follow").text

    def test_a_running_task_shows_how_far_it_is(self, api: Api, tmp_path: Path) -> None:
        task_id = api.submit()
        progress = tmp_path / "progress"
        with api.served_with(log_files=lambda *_: SimpleNamespace(progress=str(progress))) as client:

            def shown() -> object:
                said = client.get(f"/tasks/{task_id}").json()["progress"]
                (listed,) = client.get("/tasks", params={"id": task_id}).json()["tasks"]
                assert listed["progress"] == said
                return said

            progress.write_text("0.5")
            assert shown() is None  # it does not run yet
            api.worker.start(task_id)
            for text, said in (("0.5", 0.5), ('{"epoch": 3}', {"epoch": 3}), ("half\n", "half"), ("", None)):
                progress.write_text(text)
                assert shown() == said
            progress.write_bytes(b"\xff\0" + b"x" * 10_000)
            assert shown() == "\ufffd\ufffd" + "x" * 4094
            progress.unlink()
            assert shown() is None
            progress.symlink_to("/etc/hostname")
            assert shown() is None
            progress.unlink()
            os.mkfifo(progress)
            assert shown() is None
            assert api.http.get(f"/tasks/{task_id}").json()["progress"] is None  # nobody told this server where to look
            api.worker.finish(task_id)
            assert shown() is None

    def test_a_file_that_is_gone_or_was_replaced_is_not_found(self, api: Api, tmp_path: Path) -> None:
        task_id = api.task_with_logs(tmp_path, stdout=b"x")
        path = Path(api.store.get(task_id)["attempts"][0]["stdout"])
        path.unlink()
        assert_problem(api.http.get(f"/tasks/{task_id}/logs"), 404)
        path.symlink_to("/etc/hostname")
        assert_problem(api.http.get(f"/tasks/{task_id}/logs"), 404)
        path.unlink()
        os.mkfifo(path)
        assert_problem(api.http.get(f"/tasks/{task_id}/logs"), 404)


class TestSteering:
    def test_a_queued_task_is_cancelled_once_and_for_all(self, api: Api) -> None:
        task_id = api.submit()
        for _ in range(2):
            answer = api.http.post(f"/tasks/{task_id}/cancel")
            assert (answer.status_code, answer.json()) == (200, {"id": task_id, "status": "cancelled"})
        assert api.store.get(task_id)["reason"] == "user"

    def test_an_ended_task_runs_again(self, api: Api) -> None:
        task_id = api.submit()
        api.http.post(f"/tasks/{task_id}/cancel")
        answer = api.http.post(f"/tasks/{task_id}/retry")
        assert (answer.status_code, answer.json()) == (200, {"id": task_id, "status": "queued"})

    def test_one_that_has_not_ended_cannot_be_retried(self, api: Api) -> None:
        answer = api.http.post(f"/tasks/{api.submit()}/retry")
        assert 400 <= answer.status_code < 500
        assert_problem(answer, answer.status_code)

    @pytest.mark.parametrize("what", ["cancel", "retry"])
    def test_an_unknown_task_is_not_found(self, api: Api, what: str) -> None:
        assert_problem(api.http.post(f"/tasks/{new_id()}/{what}"), 404)

    def test_a_paused_queue_accepts_and_starts_nothing(self, api: Api) -> None:
        assert api.http.post("/queue/pause").json() == {"paused": True}
        try:
            task_id = api.submit(priority="HIGH")
            assert api.worker.claim() == []
        finally:
            assert api.http.post("/queue/resume").json() == {"paused": False}
        api.worker.run(task_id)
        assert api.store.get(task_id)["status"] == State.SUCCEEDED.value


class TestHealth:
    def test_all_of_it_with_a_token(self, api: Api) -> None:
        api.settings.queue_folder.mkdir(exist_ok=True, parents=True)
        for name in ("a.task", "b.task", ".c.task", "d.txt"):
            (api.settings.queue_folder / name).touch()
        health = api.http.get("/health").json()
        assert (health["status"], health["database"], health["queue_files"], health["completed_files"]) == (
            "ok",
            "ok",
            2,
            0,
        )
        assert health.keys() == {
            "status", "version", "database", "nodes", "short_nodes", "queue_files", "completed_files",
            "queued", "running",
        }  # fmt: skip
        queued = health["queued"]
        api.submit()
        assert api.http.get("/health").json()["queued"] == queued + 1

    def test_a_database_that_goes_away_and_comes_back(self, new_database: NewDatabase, tmp_path: Path) -> None:
        with new_database() as url, Store(url, connect_timeout_s=1) as store, administrator(url) as (shut, open_again):
            app = create_app(store, Settings(home=tmp_path), token=TOKEN)
            with running(app) as api_url, http_client(api_url) as client:
                assert client.post("/submit", json={"id": "before"}).status_code == 201
                shut()
                assert client.get("/health").status_code == 503
                headers = {"Content-Type": "application/json"}
                for method, path, content in [
                    ("POST", "/submit", b"{}"),
                    ("POST", "/submit/batch", b"[{}]"),
                    ("GET", "/stats", b""),
                ]:
                    answer = client.request(method, path, content=content, headers=headers)
                    assert_problem(answer, 503)
                    assert answer.headers["retry-after"] == "1"
                open_again()
                # Each try waits up to a second for a connection; the pool makes one within a few.
                tries = (client.post("/submit", json={"id": "before"}).status_code for _ in range(30))
                assert next(status for status in tries if status != 503) == 200
                assert client.get("/health").status_code == 200

    def test_what_went_wrong_with_the_database_is_for_the_log(self, api: Api) -> None:
        def down() -> Any:
            raise DatabaseUnreachable("db.internal:5432 refused")

        with api.served_with(ping=down) as client:
            answer = client.get("/health")
            assert (answer.status_code, answer.json()["database"]) == (503, "unreachable")
            assert "db.internal" not in answer.text
            del client.headers["Authorization"]
            alone = client.get("/health")
            assert (alone.status_code, alone.json()) == (503, {"status": "unavailable"})

    def test_the_nodes_are_listed(self, api: Api) -> None:
        task_id = api.submit()
        api.worker.run(task_id)
        assert str(api.worker.incarnation) in [node["incarnation"] for node in api.http.get("/nodes").json()["nodes"]]


@contextmanager
def administrator(url: str) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """What takes a database away from everybody, and what gives it back."""
    name = conninfo_to_dict(url)["dbname"]
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as conn:

        def shut() -> None:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

        def open_again() -> None:
            conn.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

        yield shut, open_again
