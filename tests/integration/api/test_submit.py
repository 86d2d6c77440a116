"""POST /submit and /submit/batch against a real store, through a real server."""

from __future__ import annotations

import errno
import io
import json
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pysched.api import express
from pysched.api import submit as submit_module
from pysched.draft import Draft, draft
from pysched.errors import DatabaseUnreachable
from pysched.model import is_valid_id, new_id
from pysched.settings import Settings
from pysched.task import BATCH_TASKS, Task, parse_task
from tests.integration.api.conftest import Api, assert_problem

JSON = {"Content-Type": "application/json"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"
NDJSON = {"Content-Type": "application/x-ndjson"}

# What is sent, and the field that the answer must name.
BAD_TASKS: list[tuple[bytes, str]] = [
    (b"", ""),
    (b"   ", ""),
    (b"{", ""),
    (b'{"name": "a",}', ""),
    (b"[]", ""),
    (b"null", ""),
    (b'"text"', ""),
    (b"name: a", ""),
    (b'{"name": "\xff"}', ""),
    (b'{"name": "\\ud800"}', ""),
    (b"[" * 100_000, ""),
    (b'{"params": ' + b'{"a":' * 100_000, ""),
    (b'{"nmae": "a"}', "nmae"),
    (b'{"attempts": 1}', "attempts"),
    (b'{"id": "../../etc/passwd"}', "id"),
    (b'{"id": "a/b"}', "id"),
    (b'{"id": ".hidden"}', "id"),
    (b'{"id": ""}', "id"),
    (b'{"id": 5}', "id"),
    (b'{"id": "a\\n"}', "id"),
    (b'{"id": "' + b"a" * 129 + b'"}', "id"),
    (b'{"name": ""}', "name"),
    (b'{"name": "a\\u0000b"}', "name"),
    (b'{"type": "gpu"}', "type"),
    (b'{"priority": "urgent"}', "priority"),
    (b'{"priority": 1}', "priority"),
    (b'{"rank": 2147483648}', "rank"),
    (b'{"rank": 1.5}', "rank"),
    (b'{"rank": "1"}', "rank"),
    (b'{"rank": true}', "rank"),
    (b'{"duration_ms": -1}', "duration_ms"),
    (b'{"duration_ms": "100"}', "duration_ms"),
    (b'{"command": ""}', "command"),
    (b'{"command": []}', "command"),
    (b'{"command": [1]}', "command.0"),
    (b'{"command": {}}', "command"),
    (b'{"command": "a\\u0000"}', "command"),
    (b'{"entrypoint": "a.b:c"}', ""),
    (b'{"entrypoint": "no colon", "type": "ml"}', "entrypoint"),
    (b'{"params": []}', "params"),
    (b'{"timeout_s": 0}', "timeout_s"),
    (b'{"timeout_s": NaN}', "timeout_s"),
    (b'{"timeout_s": 1e999}', "timeout_s"),
    (b'{"max_retries": 101}', "max_retries"),
    (b'{"after": "a"}', "after"),
    (b'{"after": ["/"]}', "after.0"),
    (b'{"env": {"PYSCHED_TASK_ID": "x"}}', "env"),
    (b'{"env": {"A": 1}}', "env.A"),
    (b'{"cwd": "relative"}', "cwd"),
    (b'{"tags": ["a", 1]}', "tags.1"),
]


class TestSubmit:
    def test_a_task_is_in_the_store_when_the_answer_comes(self, api: Api) -> None:
        answer = api.http.post("/submit", json={"command": ["echo", "ü"], "priority": "high", "rank": 3})
        assert answer.status_code == 201
        accepted = answer.json()
        assert accepted.keys() == {"id", "status"}
        assert is_valid_id(accepted["id"])
        assert accepted["status"] == "queued"
        row = api.store.get(accepted["id"])
        assert (row["priority"], row["rank"]) == ("HIGH", 3)

    def test_the_seeds_body_is_a_task(self, api: Api) -> None:
        seed = {"name": "job-1", "priority": "LOW", "type": "ml", "duration_ms": 5}
        assert api.http.post("/submit", json=seed).status_code == 201

    def test_the_same_again_is_the_same(self, api: Api) -> None:
        task = {"id": new_id(), "command": "true", "priority": "MED"}
        first = api.http.post("/submit", json=task)
        again = api.http.post("/submit", json=task | {"priority": "med", "rank": 0})  # equal content, other words
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json() == again.json()

    def test_other_content_under_a_known_id_is_a_conflict(self, api: Api) -> None:
        task_id = new_id()
        assert api.http.post("/submit", json={"id": task_id, "command": "true"}).status_code == 201
        answer = api.http.post("/submit", json={"id": task_id, "command": "false"})
        document = assert_problem(answer, 409)
        assert document["id"] == task_id
        assert document["errors"][0]["field"] == "id"
        assert task_id in document["detail"]

    def test_a_delay_and_a_dependency_say_so(self, api: Api) -> None:
        first = api.http.post("/submit", json={"delay_s": 3600}).json()
        assert first["status"] == "scheduled"
        assert api.http.post("/submit", json={"after": [first["id"]]}).json()["status"] == "blocked"

    @pytest.mark.parametrize(("body", "field"), BAD_TASKS, ids=lambda value: repr(value[:40]))
    def test_bad_input_names_its_field_and_changes_nothing(self, api: Api, body: bytes, field: str) -> None:
        before = api.store.stats()["states"]
        document = assert_problem(api.http.post("/submit", content=body, headers=JSON), 422)
        named = [error["field"] for error in document["errors"]]
        assert field in named
        assert all(field.startswith(each) for each in named)
        assert document["errors"][0]["message"]
        assert "\n" not in document["detail"]
        assert "Traceback" not in document["detail"]
        assert api.store.stats()["states"] == before

    def test_the_nearest_field_is_named(self, api: Api) -> None:
        document = assert_problem(api.http.post("/submit", json={"priorty": "HIGH"}), 422)
        assert "did you mean priority?" in document["errors"][0]["message"]

    def test_all_that_is_wrong_is_said_at_once(self, api: Api) -> None:
        document = assert_problem(api.http.post("/submit", json={"rank": "x", "cwd": "y"}), 422)
        assert {error["field"] for error in document["errors"]} == {"rank", "cwd"}

    def test_a_query_is_no_option(self, api: Api) -> None:
        assert_problem(api.http.post("/submit?dry_run=1", json={}), 422)


class TestGroupCommit:
    def test_requests_at_once_share_transactions_and_get_their_own_verdicts(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = new_id()
        assert api.http.post("/submit", json={"id": taken}).status_code == 201
        commits: list[int] = []
        gate = threading.Event()
        all_sent = threading.Semaphore(0)
        accept = api.store.accept

        def slow(tasks: Sequence[Task], **how: Any) -> Any:
            commits.append(len(tasks))
            assert gate.wait(30)
            return accept(tasks, **how)

        def counted(body: bytes) -> Draft | None:
            all_sent.release()
            return draft(body)

        monkeypatch.setattr(express, "draft", counted)
        with api.served_with(accept=slow) as client, ThreadPoolExecutor(64) as pool:
            bodies: list[dict[str, Any]] = [{"id": taken, "rank": 1} if n == 7 else {"rank": n} for n in range(64)]
            bodies[9] = {"nonsense": 1}
            requests = [pool.submit(client.post, "/submit", json=body) for body in bodies]
            for _ in bodies:
                assert all_sent.acquire(timeout=30)
            gate.set()
            statuses = [request.result().status_code for request in requests]
        assert [status for status in statuses if status != 201] == [409, 422]
        assert statuses[7] == 409
        assert sum(commits) == 63
        assert len(commits) <= 8  # the first few went before the others had arrived; without grouping there are 63

    def test_a_database_that_fails_leaves_nobody_waiting(self, api: Api) -> None:
        def down(tasks: Sequence[Task], **how: Any) -> Any:
            raise DatabaseUnreachable("secret-host refused the connection")

        with api.served_with(accept=down) as client, ThreadPoolExecutor(8) as pool:
            answers = [each.result() for each in [pool.submit(client.post, "/submit", json={}) for _ in range(8)]]
            answers.append(client.post("/submit/batch", json=[{}]))
        for answer in answers:
            document = assert_problem(answer, 503)
            assert answer.headers["retry-after"] == "1"
            assert "secret-host" not in document["detail"]


class TestBatch:
    @pytest.fixture(autouse=True, params=[0, submit_module.STREAMED_BYTES], ids=["streamed", "whole"])
    def _least(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit_module, "STREAMED_BYTES", request.param)

    @pytest.mark.parametrize("memory", [1, submit_module.SPOOL_BYTES])
    def test_much_of_it_lies_in_a_file(self, api: Api, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
        monkeypatch.setattr(submit_module, "SPOOL_BYTES", memory)
        body = b"\n".join(json.dumps({"id": f"{new_id()}", "rank": n}).encode() for n in range(300))
        assert api.http.post("/submit/batch", content=body, headers=NDJSON).json()["created"] == 300
        assert api.http.post("/submit/batch", content=body, headers=NDJSON).json()["created"] == 0

    def test_a_full_disk_is_an_unavailable_server(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full(io.BytesIO):
            def write(self, _: object) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda _: Full())
        assert_problem(api.http.post("/submit/batch", json=[{}]), 503)

    def test_an_array_is_accepted_in_order(self, api: Api) -> None:
        tasks: list[dict[str, Any]] = [{"id": new_id(), "rank": n} for n in range(500)]
        answer = api.http.post("/submit/batch", json=tasks)
        assert answer.status_code == 201
        assert answer.json()["created"] == 500
        assert [task["id"] for task in answer.json()["tasks"]] == [task["id"] for task in tasks]

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n"])
    def test_so_are_lines(self, api: Api, end: bytes) -> None:
        body = b'{"name": "a"}\r\n\n  {"name": "b\xe2\x80\xa8"}\n' + b'{"command": "true"}' + end
        answer = api.http.post("/submit/batch", content=body, headers=NDJSON)
        assert answer.status_code == 201
        assert answer.json()["created"] == 3
        assert len({task["id"] for task in answer.json()["tasks"]}) == 3

    @pytest.mark.parametrize("size", [1, 7, 65536])
    def test_lines_may_be_cut_anywhere(self, api: Api, size: int) -> None:
        ids = [new_id() for _ in range(20)]
        body = b"\n".join(json.dumps({"id": each, "name": "ü"}, ensure_ascii=False).encode() for each in ids)
        chunks = (body[start : start + size] for start in range(0, len(body), size))
        answer = api.http.post("/submit/batch", content=chunks, headers=NDJSON)
        assert [task["id"] for task in answer.json()["tasks"]] == ids

    def test_the_same_again_creates_nothing(self, api: Api) -> None:
        tasks = [{"id": new_id()} for _ in range(3)]
        assert api.http.post("/submit/batch", json=tasks).status_code == 201
        again = api.http.post("/submit/batch", json=tasks)
        assert (again.status_code, again.json()["created"]) == (200, 0)
        some = api.http.post("/submit/batch", json=[*tasks, {"id": new_id()}])
        assert (some.status_code, some.json()["created"]) == (201, 1)

    def test_nothing_at_all_is_nothing(self, api: Api) -> None:
        for content, headers in ((b"[]", JSON), (b"", NDJSON), (b"\n\n", NDJSON)):
            answer = api.http.post("/submit/batch", content=content, headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"created": 0, "tasks": []})

    def test_members_may_depend_on_each_other(self, api: Api) -> None:
        first, second = new_id(), new_id()
        answer = api.http.post("/submit/batch", json=[{"id": first}, {"id": second, "after": [first]}])
        assert [task["status"] for task in answer.json()["tasks"]] == ["queued", "blocked"]

    @pytest.mark.parametrize(("body", "field"), BAD_TASKS[12:20], ids=lambda value: repr(value[:40]))
    @pytest.mark.parametrize("kind", ["array", "lines"])
    def test_one_bad_task_refuses_all_and_is_named(self, api: Api, kind: str, body: bytes, field: str) -> None:
        good = [json.dumps({"id": new_id()}).encode() for _ in range(4)]
        parts = [*good[:3], body, good[3]]
        content, headers = (b"[" + b",".join(parts) + b"]", JSON) if kind == "array" else (b"\n".join(parts), NDJSON)
        before = api.store.stats()["states"]
        document = assert_problem(api.http.post("/submit/batch", content=content, headers=headers), 422)
        assert [(error["index"], error["field"]) for error in document["errors"]] == [(3, field)]
        assert api.store.stats()["states"] == before

    def test_one_conflict_refuses_all_and_is_named(self, api: Api) -> None:
        taken, free = new_id(), new_id()
        assert api.http.post("/submit", json={"id": taken}).status_code == 201
        tasks = [{"id": free}, {"id": taken, "rank": 5}]
        document = assert_problem(api.http.post("/submit/batch", json=tasks), 409)
        assert [(error["index"], error["field"]) for error in document["errors"]] == [(1, "id")]
        assert document["id"] == taken
        assert_problem(api.http.get(f"/tasks/{free}"), 404)

    def test_one_id_with_two_contents_is_a_conflict_of_the_batch(self, api: Api) -> None:
        task_id = new_id()
        tasks = [{"id": task_id, "rank": 1}, {"id": task_id, "rank": 2}]
        document = assert_problem(api.http.post("/submit/batch", json=tasks), 409)
        assert document["errors"][0]["index"] == 1
        assert_problem(api.http.get(f"/tasks/{task_id}"), 404)

    @pytest.mark.parametrize(
        "content", [b"{}", b"", b"nonsense", b'[{"name": "a"}', b"[{}] x", b'[{"name": "\xff"}]'], ids=repr
    )
    def test_what_is_no_array_is_malformed(self, api: Api, content: bytes) -> None:
        assert_problem(api.http.post("/submit/batch", content=content, headers=JSON), 422)

    @pytest.mark.parametrize("kind", ["array", "lines"])
    def test_its_length_is_bounded(self, api: Api, kind: str) -> None:
        count = BATCH_TASKS + 1
        content, headers = (
            (b"[" + b"{}," * (count - 1) + b"{}]", JSON) if kind == "array" else (b"{}\n" * count, NDJSON)
        )
        document = assert_problem(api.http.post("/submit/batch", content=content, headers=headers), 422)
        assert str(BATCH_TASKS) in document["detail"]

    def test_a_line_is_held_to_what_a_task_may_be(self, api: Api) -> None:
        document = assert_problem(
            api.http.post("/submit/batch", content=b"{}\n" + b" " * (3 << 20), headers=NDJSON), 422
        )
        assert document["errors"][0]["index"] == 1

    def test_its_bytes_are_bounded_while_they_stream(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submit_module, "BATCH_BYTES", 10_000)
        for headers in (JSON, NDJSON):
            chunks = (b"\n" * 1000 for _ in range(11))
            assert_problem(api.http.post("/submit/batch", content=chunks, headers=headers), 413)


class TestTrace:
    def kept(self, api: Api, task_id: str) -> dict[str, Any]:
        shown = api.http.get(f"/tasks/{task_id}").json()["task"]
        return {name: value for name, value in shown.items() if name.startswith("trace")}

    @pytest.mark.parametrize("more", [{}, {"tracestate": "a=1,b=2"}])
    def test_headers_are_kept(self, api: Api, more: dict[str, str]) -> None:
        headers = {"traceparent": PARENT, **more}
        one = api.http.post("/submit", json={}, headers=headers).json()["id"]
        own = {"traceparent": OTHER}
        batch = api.http.post("/submit/batch", json=[{}, own], headers=headers).json()["tasks"]
        assert self.kept(api, one) == self.kept(api, batch[0]["id"]) == headers
        assert self.kept(api, batch[1]["id"]) == own

    @pytest.mark.parametrize("bad", ["x", PARENT.replace("00-", "ff-", 1)])
    def test_a_malformed_one_is_ignored(self, api: Api, bad: str) -> None:
        answer = api.http.post("/submit", json={}, headers={"traceparent": bad, "tracestate": "a=1"})
        assert answer.status_code == 201
        assert self.kept(api, answer.json()["id"]) == {}
        assert api.http.post("/submit", json={}, headers={"traceparent": bad}).status_code == 201

    def test_the_same_task_in_another_span_is_the_same(self, api: Api) -> None:
        task = {"id": new_id(), "command": "true"}
        sent = [api.http.post("/submit", json=task, headers={"traceparent": each}) for each in (PARENT, OTHER)]
        sent += [api.http.post("/submit", json=task), api.http.post("/submit/batch", json=[task, task])]
        assert [answer.status_code for answer in sent] == [201, 200, 200, 200]
        assert self.kept(api, task["id"]) == {"traceparent": PARENT}
        assert api.http.post("/submit", json={**task, "rank": 1}, headers={"traceparent": PARENT}).status_code == 409


class TestMirror:
    def test_each_new_task_is_a_file_with_the_same_task(self, api: Api, tmp_path: Path) -> None:
        task = {"id": new_id(), "command": "echo ü", "env": {"A": "b"}, "timeout_s": 0.1, "priority": "low"}
        folder = tmp_path / "mirror"
        with mirroring(api, folder, tmp_path) as client:
            assert client.post("/submit", json=task).status_code == 201
            assert client.post("/submit", json=task).status_code == 200
            batch = client.post("/submit/batch", json=[{"rank": 1}, {"rank": 2}, task]).json()
        ids = {each["id"] for each in batch["tasks"]}
        assert {path.name for path in folder.iterdir()} == {f"{each}.task" for each in ids}
        mirrored = parse_task((folder / f"{task['id']}.task").read_bytes())
        assert mirrored == parse_task(task)

    def test_a_task_that_was_known_is_not_mirrored_again(self, api: Api, tmp_path: Path) -> None:
        task, folder = {"id": new_id()}, tmp_path / "mirror"
        with mirroring(api, folder, tmp_path) as client:
            assert client.post("/submit", json=task).status_code == 201
        (folder / f"{task['id']}.task").unlink()  # as the node does that takes it in
        with mirroring(api, folder, tmp_path) as client:
            assert client.post("/submit", json=task).status_code == 200
            assert client.post("/submit/batch", json=[task]).status_code == 200
        assert list(folder.iterdir()) == []

    def test_the_store_takes_the_file_for_the_same_task(self, api: Api, tmp_path: Path) -> None:
        with mirroring(api, tmp_path / "mirror", tmp_path) as client:
            task_id = client.post("/submit", json={"retry_delay_s": 0.7, "params": {"x": 1.0}}).json()["id"]
        again = parse_task((tmp_path / "mirror" / f"{task_id}.task").read_bytes())
        with api.served_with() as client:
            answer = client.post("/submit", content=again.model_dump_json(exclude_defaults=True), headers=JSON)
        assert (answer.status_code, answer.json()["id"]) == (200, task_id)

    def test_a_folder_that_cannot_be_written_refuses_nobody(self, api: Api, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with mirroring(api, tmp_path / "file", tmp_path) as client:
            assert client.post("/submit", json={}).status_code == 201
            assert client.get("/health").status_code == 200

    def test_what_was_refused_is_not_mirrored(self, api: Api, tmp_path: Path) -> None:
        taken = new_id()
        assert api.http.post("/submit", json={"id": taken}).status_code == 201
        with mirroring(api, tmp_path / "mirror", tmp_path) as client:
            assert client.post("/submit", json={"id": taken, "rank": 1}).status_code == 409
            assert client.post("/submit/batch", json=[{"rank": 7}, {"id": taken, "rank": 1}]).status_code == 409
        assert list((tmp_path / "mirror").iterdir()) == []


def mirroring(api: Api, folder: Path, home: Path) -> Any:
    """A client of a control plane on the same store that mirrors; files are complete when the block has ended."""
    return api.served_with(settings=Settings(home=home, mirror=folder))
