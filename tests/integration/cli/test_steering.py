"""Commands that change the course of tasks, and what they exit with."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.integration.api.conftest import Api


class TestWait:
    def test_the_exit_code_is_the_jobs_own(self, api: Api, scheduler: CommandLine) -> None:
        good, bad = api.submit(), api.submit(max_retries=0)
        api.worker.run(good)
        api.worker.run(bad, exit_code=9)
        assert scheduler("wait", good).code == 0
        done = scheduler("wait", good, bad)
        assert done.code == 9
        assert done.err == f"{bad} failed: exit 9\n1 of 2 succeeded\n"
        document = json.loads(scheduler("wait", bad, "-o", "json").out)
        assert document["tasks"][0]["exit_code"] == 9

    def test_it_gives_up_in_time_with_124(self, api: Api, scheduler: CommandLine) -> None:
        task_id = api.submit()
        assert scheduler.fails(124, "wait", task_id, "--timeout", "1ms").startswith(
            f"{task_id} is queued after 0.001 s"
        )
        assert "tasks have not ended" in scheduler.fails(124, "wait", "--all", "-T", "1ms")
        document = json.loads(scheduler("wait", task_id, "-T", "1ms", "-o", "json").err)
        assert document["error"]["kind"] == "timeout"
        api.worker.run(task_id)

    def test_for_all(self, api: Api, scheduler: CommandLine, working: None) -> None:
        api.submit()
        assert scheduler("wait", "--all").code == 0
        assert scheduler("wait", "all").code == 0


class TestCancelAndRetry:
    def test_by_id_and_row(self, api: Api, scheduler: CommandLine, tag: str) -> None:
        first, second = api.submit(tags=[tag]), api.submit(tags=[tag])
        scheduler("ls", f"tag={tag}")
        assert scheduler("cancel", "%1").out == f"cancelled {second}\n"
        assert scheduler("retry", second).out == f"runs again: {second}\n"
        assert json.loads(scheduler("cancel", "-o", "json", second).out) == {
            "version": 1, "tasks": [{"id": second, "status": "cancelled"}], "errors": [],
        }  # fmt: skip
        api.worker.start(first)
        assert scheduler("cancel", first).out == f"stopping {first}\n"
        api.worker.finish(first)
        assert scheduler("cancel", first).out == f"has succeeded already: {first}\n"

    def test_one_that_is_refused_does_not_stop_the_others(self, api: Api, scheduler: CommandLine) -> None:
        queued, cancelled = api.submit(), api.submit()
        scheduler("cancel", cancelled)
        done = scheduler("retry", queued, cancelled)
        assert done.code != 0
        assert done.err.startswith(f"{queued}: ")
        assert done.out == f"runs again: {cancelled}\n"
        scheduler("cancel", queued, cancelled)

    def test_by_filter_only_when_sure(self, api: Api, scheduler: CommandLine, tag: str) -> None:
        ids = [api.submit(tags=[tag]) for _ in range(3)]
        assert "this would cancel 3 tasks; say --yes" in scheduler.fails(2, "cancel", f"tag={tag}")
        assert {api.store.get(each)["status"] for each in ids} == {"queued"}
        done = scheduler("cancel", f"tag={tag}", "--yes")
        assert done.out == "3 cancelled, 0 being stopped, 0 had ended before\n"
        assert json.loads(scheduler("cancel", f"tag={tag}", "-y", "-o", "json").out) == {
            "version": 1, "cancelled": 0, "requested": 0, "unchanged": 3,
        }  # fmt: skip
        assert scheduler("retry", f"tag={tag}", "status=cancelled", "-y").out == "3 run again\n"
        assert scheduler("cancel", f"tag={tag}", "-y").code == 0

    def test_nothing_that_fits_is_no_mistake(self, scheduler: CommandLine) -> None:
        assert scheduler("cancel", "tag=nobody").out == "0 cancelled, 0 being stopped, 0 had ended before\n"
        assert scheduler("retry", "tag=nobody").out == "0 run again\n"

    def test_failed_ones(self, api: Api, scheduler: CommandLine, tag: str) -> None:
        task_id = api.submit(tags=[tag], max_retries=0)
        api.worker.run(task_id, exit_code=1)
        assert scheduler("retry", "--failed", f"tag={tag}", "--yes").out == "1 run again\n"
        assert scheduler("cancel", task_id).code == 0

    def test_all_that_can_be(self, api: Api, scheduler: CommandLine) -> None:
        task_id = api.submit()
        assert scheduler("cancel", "all", "--yes").code == 0
        assert api.store.get(task_id)["status"] == "cancelled"


class TestEdit:
    @staticmethod
    def editor(tmp_path: Path, script: str) -> str:
        path = tmp_path / "editor"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def test_what_was_changed_is_a_new_task(
        self, api: Api, scheduler: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task_id = api.submit(command="false", max_retries=0)
        api.worker.run(task_id, exit_code=1)
        monkeypatch.setenv("EDITOR", self.editor(tmp_path, """sed -i 's/"false"/"true"/' "$1" """))
        monkeypatch.delenv("VISUAL", raising=False)
        done = scheduler("retry", "--edit", task_id)
        assert '-  "command": "false"' in done.err
        assert '+  "command": "true"' in done.err
        new_id = done.out.split()[-1]
        assert new_id != task_id
        assert api.store.get(new_id)["task"] == {"command": "true", "max_retries": 0}
        assert api.store.get(task_id)["status"] == "failed"
        api.worker.run(new_id)

    def test_nothing_changed_nothing_done(
        self, api: Api, scheduler: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task_id = api.submit()
        monkeypatch.setenv("VISUAL", self.editor(tmp_path, "true"))
        done = scheduler("retry", "--edit", task_id)
        assert (done.code, done.out) == (0, "")
        assert "nothing was changed" in done.err
        monkeypatch.setenv("VISUAL", self.editor(tmp_path, 'echo "{" > "$1"'))
        done = scheduler("retry", "--edit", task_id)
        assert done.code == 2
        assert done.out == ""
        api.worker.run(task_id)


class TestTheWhole:
    def test_the_queue(self, api: Api, scheduler: CommandLine) -> None:
        try:
            assert scheduler("queue", "pause").out.startswith("paused")
            assert api.store.stats()["paused"] is True
            assert "the queue is paused" in scheduler("stats").out
        finally:
            done = scheduler("queue", "resume", "-o", "json")
        assert json.loads(done.out) == {"version": 1, "paused": False}
        assert api.store.stats()["paused"] is False

    def test_nodes(self, api: Api, scheduler: CommandLine) -> None:
        name = str(api.worker.incarnation)
        assert name in scheduler("nodes").out
        assert scheduler("nodes", "-q").out.split() == [name]
        assert json.loads(scheduler("nodes", "-o", "json").out)["nodes"][0]["incarnation"] == name
        assert f"there are {name[:8]}" in scheduler.fails(3, "nodes", "--drain", "zz")

    def test_tokens(self, scheduler: CommandLine) -> None:
        made = scheduler("token", "create", "ci", "--scope", "read")
        token = made.out.strip()
        assert len(token) > 20
        assert "scope read" in made.err
        assert "ci    read" in scheduler("token", "list").out
        assert token not in scheduler("token", "list", "-o", "json").out
        assert scheduler("stats", "--token", token).code == 0
        assert scheduler("queue", "pause", "--token", token).code == 1
        assert scheduler("token", "revoke", "ci").out == "revoked ci\n"
        assert scheduler("token", "revoke", "ci").code == 3
        assert "is wrong" in scheduler.fails(1, "stats", "--token", token)
