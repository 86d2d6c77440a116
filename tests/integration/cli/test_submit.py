"""`scheduler submit`: what becomes of options, words, lines, numbers and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pysched.client import Client
from tests.command_line import CommandLine


def submitted(scheduler: CommandLine, *words: str, given: str = "") -> list[dict[str, Any]]:
    """The tasks as the server has them, in order."""
    done = scheduler("submit", "-q", *words, given=given)
    assert done.code == 0, done.err
    with Client() as client:
        return [dict(client.get(task_id)) for task_id in done.out.split()]


def test_every_option_reaches_its_field(scheduler: CommandLine, tmp_path: Path) -> None:
    (first,) = submitted(scheduler, "--", "true")
    (task,) = submitted(
        scheduler, "--id", "all-options", "-N", "a name", "--type", "ml", "-p", "high", "--rank", "-3",
        "--entrypoint", "m:f", "--reuse", "-P", "lr=0.5", "-P", "name=text", "-r", "7", "--retry-delay", "1m",
        "-T", "2h30m", "--grace", "1s", "--delay", "1d", "-A", first["id"][:35], "-e", "A=b=c", "-C", str(tmp_path),
        "-t", "x", "-t", "y",
    )  # fmt: skip
    assert (task["id"], task["name"], task["priority"], task["rank"]) == ("all-options", "a name", "HIGH", -3)
    spec = task["task"]
    del spec["name"], spec["priority"], spec["rank"]
    assert spec == {
        "type": "ml", "entrypoint": "m:f", "reuse": True, "params": {"lr": 0.5, "name": "text"}, "max_retries": 7,
        "retry_delay_s": 60.0, "timeout_s": 9000.0, "grace_s": 1.0, "delay_s": 86_400.0, "after": [first["id"]],
        "env": {"A": "b=c"}, "cwd": str(tmp_path), "tags": ["x", "y"],
    }  # fmt: skip


def test_several_words_run_directly_and_one_through_the_shell(scheduler: CommandLine) -> None:
    assert submitted(scheduler, "--", "echo", "a b", "-n")[0]["task"]["command"] == ["echo", "a b", "-n"]
    assert submitted(scheduler, "--", "echo a | wc")[0]["task"]["command"] == "echo a | wc"
    assert submitted(scheduler, "--shell", "--", "echo", "$HOME")[0]["task"]["command"] == "echo $HOME"


def test_the_command_is_the_name_unless_there_is_one(scheduler: CommandLine) -> None:
    assert submitted(scheduler, "--", "echo", "a b\n\tc")[0]["name"] == "echo 'a b c'"
    assert len(submitted(scheduler, "--", "echo " + "x" * 500)[0]["name"]) == 200


def test_a_number_each(scheduler: CommandLine) -> None:
    tasks = submitted(scheduler, "--id", "run", "-N", "n", "--array", "2-8:3", "--", "echo", "{}", "x{}")
    assert [(task["id"], task["name"], task["task"]["command"]) for task in tasks] == [
        ("run-1", "n 2", ["echo", "2", "x2"]),
        ("run-2", "n 5", ["echo", "5", "x5"]),
        ("run-3", "n 8", ["echo", "8", "x8"]),
    ]  # fmt: skip
    assert submitted(scheduler, "--array", "7", "--", "echo")[0]["task"]["command"] == "echo 7"


def test_a_line_each(scheduler: CommandLine) -> None:
    given = "a b\n\n;rm -rf\r\n"
    tasks = submitted(scheduler, "--each-line", "-", "--", "echo", "x", given=given)
    assert [task["task"]["command"] for task in tasks] == [["echo", "x", "a b"], ["echo", "x", ";rm -rf"]]
    tasks = submitted(scheduler, "--each-line", "-", "--", "echo {} | cat", given=given)
    assert [task["task"]["command"] for task in tasks] == ["echo 'a b' | cat", "echo ';rm -rf' | cat"]
    tasks = submitted(scheduler, "--each-line", "-", "--", "echo", given=given)
    assert [task["task"]["command"] for task in tasks] == ["echo 'a b'", "echo ';rm -rf'"]


def test_an_array_of_calls(scheduler: CommandLine) -> None:
    words = ("--type", "ml", "--entrypoint", "jobs:fit", "-P", "seed={}", "-P", 'rest={"a": [{}]}', "-P", "name=run-{}")
    first, second = submitted(scheduler, *words, "-e", "RUN={}", "--array", "1-2")
    assert first["task"]["params"] == {"seed": 1, "rest": {"a": [1]}, "name": "run-1"}
    assert (second["task"]["params"]["seed"], second["task"]["env"], second["name"]) == (2, {"RUN": "2"}, "jobs:fit 2")
    (alone,) = submitted(scheduler, *words)  # without an array nothing is special
    assert alone["task"]["params"] == {"seed": {}, "rest": {"a": [{}]}, "name": "run-{}"}
    assert alone["name"] == "jobs:fit"


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ('{"command": "a"}', ["a"]),
        ('{"command": "a"}\n\n{"command": "b"}\n', ["a", "b"]),
        ('{\n"command": "a"\n}\n', ["a"]),
        ('[{"command": "a"}, {"command": "b"}]', ["a", "b"]),
        ("# a comment\n\ncommand: a\npriority: high\n", ["a"]),
    ],
)
def test_files(scheduler: CommandLine, tmp_path: Path, text: str, commands: list[str]) -> None:
    path = tmp_path / "tasks"
    path.write_text(text)
    for words, given in ((["-f", str(path)], ""), (["-f", "-"], text), ([], text)):
        tasks = submitted(scheduler, "-t", "mine", *words, given=given)
        assert [task["task"]["command"] for task in tasks] == commands
        assert all(task["task"]["tags"] == ["mine"] for task in tasks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{]", "-: is no JSON"),
        ('{"command": "a"}\n{]\n', "-: line 2: is no JSON"),
        ('{"command": "a"}\n5\n', "-: line 2: is no JSON object"),
        ("[1]", "-: task 0: is no JSON object"),
        ('{"comand": "a"}', "comand: is not a field of a task; did you mean command?"),
        ('{"command": "a"}\n{"rank": "x"}\n', "task 1: rank: "),
        ("comand: a\n", "line 1: comand: "),
        ("\n", "there was no task to submit"),
    ],
)
def test_a_bad_file_is_one_line_and_nothing_is_submitted(scheduler: CommandLine, text: str, message: str) -> None:
    with Client() as client:
        before = client.stats()["submitted"]
        assert message in scheduler.fails(2, "submit", given=text)
        assert client.stats()["submitted"] == before


def test_the_same_id_again_is_the_same_task(scheduler: CommandLine) -> None:
    first = scheduler("submit", "--id", "once", "--", "true")
    assert first.out == "submitted once\n"
    assert scheduler("submit", "--id", "once", "--", "true") == first
    assert "'once' is the id of a task with other content" in scheduler.fails(
        2, "submit", "--id", "once", "--", "false"
    )


def test_a_dry_run_checks_and_sends_nothing(scheduler: CommandLine) -> None:
    with Client() as client:
        before = client.stats()["submitted"]
        done = scheduler("submit", "--dry-run", "-p", "high", "--array", "1-2", "--", "echo", "{}")
        assert [json.loads(line)["command"] for line in done.out.splitlines()] == [["echo", "1"], ["echo", "2"]]
        assert "priority: 'hgih' is no priority" in scheduler.fails(2, "submit", "--dry-run", "-p", "hgih", "--", "x")
        assert client.stats()["submitted"] == before


def test_json(scheduler: CommandLine) -> None:
    document = json.loads(scheduler("submit", "-o", "json", "--array", "1-3", "--", "true {}").out)
    assert document["version"] == 1
    assert len(document["submitted"]) == 3


def test_it_waits_and_exits_with_the_jobs_own_code(scheduler: CommandLine, working: None) -> None:
    done = scheduler("submit", "--wait", "--", "true")
    assert (done.code, done.err) == (0, "")


def test_a_trace_goes_on(scheduler: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    monkeypatch.setenv("TRACEPARENT", parent)
    monkeypatch.setenv("TRACESTATE", "a=1")
    assert [task["task"]["traceparent"] for task in submitted(scheduler, "--array", "1-2", "--", "true")] == [
        parent
    ] * 2
    (task,) = submitted(scheduler, given='{"command": "true"}')
    assert (task["task"]["traceparent"], task["task"]["tracestate"]) == (parent, "a=1")
    monkeypatch.setenv("TRACEPARENT", "no trace")
    (task,) = submitted(scheduler, "--", "true")
    assert "traceparent" not in task["task"]
