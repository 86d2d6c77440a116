"""Commands that look: tables, JSON, quiet; logs; exports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.integration.api.conftest import Api


@pytest.fixture
def three(api: Api, tag: str) -> list[str]:
    """One that succeeded, one that failed, one that waits."""
    good = api.submit(name="good", command=["echo", "a\tb"], tags=[tag])
    bad = api.submit(name="bad", priority="HIGH", command="exit 3", max_retries=0, tags=[tag])
    api.worker.run(good)
    api.worker.run(bad, exit_code=3)
    return [good, bad, api.submit(name="waits", after=[api.submit(delay_s=3600)], tags=[tag])]


class TestLs:
    def test_a_table(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        good, bad, waits = three
        head, *rows = scheduler("ls", f"tag={tag}").out.splitlines()
        assert head.split() == ["ROW", "ID", "NAME", "STATUS", "PRI", "WAIT", "TIME", "TRIES", "WHY"]
        assert [row.split()[:4] for row in rows] == [
            ["%1", waits, "waits", "blocked"], ["%2", bad, "bad", "failed"], ["%3", good, "good", "succeeded"],
        ]  # fmt: skip
        assert rows[0].endswith("after 1 more")
        assert rows[1].endswith("exit 3")

    def test_filters_order_and_columns(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        def names(*words: str) -> list[str]:
            return scheduler("ls", f"tag={tag}", "-c", "name", *words).out.split()[1:]

        assert names() == ["waits", "bad", "good"]
        assert names("-s", "name") == ["bad", "good", "waits"]
        assert names("-s", "-name") == ["waits", "good", "bad"]
        assert names("-s", "priority")[0] == "bad"
        assert names("status=failed,succeeded") == ["bad", "good"]
        assert names("name=go") == ["good"]
        assert names("since=1d") == ["waits", "bad", "good"]
        assert names("until=1d") == []
        assert names("text=EXIT 3") == ["bad"]
        assert names("-n", "2") == ["waits", "bad"]
        assert names("-s", "exit")[-1] == "waits"  # what is missing comes last

    def test_more_is_said(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        assert "and more: the newest 2" in scheduler("ls", f"tag={tag}", "-n", "2").err
        assert scheduler("ls", f"tag={tag}", "-n", "3").err == ""
        assert scheduler("ls", "tag=nobody").err == "no task fits\n"

    def test_for_programs(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        assert scheduler("ls", "-q", f"tag={tag}").out.split() == three[::-1]
        assert scheduler("ls", "-q", f"tag={tag}", "--all").out.split() == three[::-1]
        for words in ([], ["--all"], ["-s", "submitted", "--all"]):
            document = json.loads(scheduler("ls", "-o", "json", f"tag={tag}", *words).out)
            assert document["version"] == 1
            assert document["more"] is False
            assert {task["id"] for task in document["tasks"]} == set(three)
        assert json.loads(scheduler("ls", "-o", "json", "tag=nobody", "--all").out)["tasks"] == []

    def test_every_column_can_be_asked_for(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        names = [line.split()[0] for line in scheduler("ls", "-c", "help").out.splitlines()]
        assert len(scheduler("ls", f"tag={tag}", "-c", ",".join(names)).out.splitlines()) == 4
        for name in names:
            assert scheduler("ls", f"tag={tag}", "-s", name).code == 0
        assert scheduler("ls", f"tag={tag}", "--long").code == 0


class TestOne:
    def test_show(self, scheduler: CommandLine, three: list[str]) -> None:
        text = scheduler("show", three[1]).out
        assert f"id            {three[1]}\n" in text
        assert "status        failed (exit 3)\n" in text
        assert "command       exit 3\n" in text
        assert text.splitlines()[-1].split()[:2] == ["1", "failed"]
        assert "'a\tb'" not in scheduler("show", three[0]).out  # a tab would move what follows

    def test_what_an_entrypoint_raised(self, scheduler: CommandLine, api: Api) -> None:
        task_id = scheduler("submit", "-q", "--type", "ml", "--entrypoint", "m:f", "-r", "0").out.strip()
        error = {"type": "ValueError", "message": "no\x1b data", "traceback": "Traceback:\n  f()\nValueError\n"}
        api.worker.run(task_id, exit_code=1, result={"error": error})
        text = scheduler("show", task_id).out
        assert "raised        ValueError: no· data\n" in text
        assert "\n\nTraceback:\n  f()\nValueError\n\n" in text
        assert scheduler("wait", task_id).err == f"{task_id} failed: exit 1: ValueError: no· data\n"

    def test_show_for_programs(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        assert scheduler("show", "-q", f"tag={tag}").out.split() == three
        document = json.loads(scheduler("show", "-o", "json", three[0]).out)
        assert document["tasks"][0]["task"]["command"] == ["echo", "a\tb"]

    def test_what_is_not_there(self, scheduler: CommandLine) -> None:
        for command in ("show", "logs", "cancel", "retry", "explain", "wait"):
            assert "no-such-task" in scheduler.fails(3, command, "no-such-task")

    def test_explain(self, scheduler: CommandLine, three: list[str]) -> None:
        text = scheduler("explain", three[2]).out
        assert "WAITS FOR" in text
        assert "scheduled" in text
        assert scheduler("explain", "-q", three[2]).out == "blocked\n"
        assert json.loads(scheduler("explain", "-o", "json", three[0]).out)["why"] == "ended"

    def test_stats(self, scheduler: CommandLine, three: list[str]) -> None:
        lines = scheduler("stats").out.splitlines()
        assert lines[0].split() == ["STATUS", "HIGH", "MED", "LOW", "ALL"]
        assert json.loads(scheduler("stats", "-o", "json").out)["states"]["failed"] >= 1
        assert scheduler("stats", "-q").out.startswith("blocked ")


class TestLogs:
    def test_what_was_written(self, api: Api, scheduler: CommandLine, tmp_path: Path) -> None:
        text = b"".join(b"line %d\n" % number for number in range(200_000))  # more than one answer holds
        task_id = api.task_with_logs(tmp_path, stdout=text, stderr=b"oops\n")
        assert scheduler("logs", task_id).out.encode() == text
        assert scheduler("logs", "--stderr", task_id).out == ""
        assert scheduler("logs", "--stderr", task_id).err == "oops\n"
        assert scheduler("logs", "-n", "2", task_id).out == "line 199998\nline 199999\n"
        assert scheduler("logs", "-n", "0", task_id).out == ""
        both = json.loads(scheduler("logs", "--both", "-n", "1", "-o", "json", task_id).out)
        assert both["logs"] == [{"id": task_id, "stdout": "line 199999\n", "stderr": "oops\n"}]

    def test_of_several(self, api: Api, scheduler: CommandLine, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        first = api.task_with_logs(tmp_path / "a", stdout=b"one\n")
        second = api.task_with_logs(tmp_path, stdout=b"two, no end of line")
        heads = [f"==> {task_id[:8]}…{task_id[-6:]} <==" for task_id in (first, second)]
        assert scheduler("logs", first, second).out == f"{heads[0]}\none\n\n{heads[1]}\ntwo, no end of line"
        done = scheduler("logs", "-f", first, second)
        assert done.code == 0
        assert sorted(line.split("│")[1] for line in done.out.splitlines()) == [" one", " two, no end of line"]

    def test_following_ends_with_the_task(self, api: Api, scheduler: CommandLine, tmp_path: Path) -> None:
        task_id = api.submit(max_retries=0)
        (tmp_path / "out").write_bytes(b"some output\n")
        (tmp_path / "err").write_bytes(b"some error\n")
        api.worker.run(task_id, exit_code=4, stdout=tmp_path / "out", stderr=tmp_path / "err")
        done = scheduler("logs", "-f", "--both", task_id)
        assert (done.code, done.out) == (4, "some output\n")
        assert done.err == f"some error\n{task_id} failed: exit 4\n"


class TestExport:
    def test_a_line_each(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        lines = scheduler("export", f"tag={tag}").out.splitlines()
        assert [json.loads(line)["id"] for line in lines] == three[::-1]
        assert json.loads(scheduler("export", f"tag={tag}", "-o", "json").out)["version"] == 1

    def test_csv(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        rows = list(csv.DictReader(io.StringIO(scheduler("export", f"tag={tag}", "--format", "csv").out)))
        assert [row["status"] for row in rows] == ["blocked", "failed", "succeeded"]
        assert rows[1]["exit_code"] == "3"

    def test_joblog(self, scheduler: CommandLine, three: list[str], tag: str) -> None:
        head, *lines = scheduler("export", f"tag={tag}", "--joblog").out.splitlines()
        assert head == "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"
        fields = [line.split("\t") for line in lines]
        assert [(each[0], each[1], each[6], each[7], each[8]) for each in fields] == [
            ("1", "host", "0", "0", "echo 'a b'"), ("2", "host", "3", "0", "exit 3"),
        ]  # fmt: skip
        assert all(float(each[2]) > 1e9 and float(each[3]) >= 0 for each in fields)
