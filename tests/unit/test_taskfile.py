"""Both formats of a `.task` file, and what bad ones are told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched.errors import TaskError
from pysched.intake.taskfile import id_from_stem, parse_task_file
from pysched.model import Priority, TaskType, is_valid_id
from pysched.task import Task


def reason(data: bytes | str, stem: str = "job") -> str:
    with pytest.raises(TaskError) as caught:
        parse_task_file(stem, data.encode() if isinstance(data, str) else data)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_both_formats_say_the_same() -> None:
    fields = {
        "id": "a.1",
        "name": "résumé",
        "type": "system",
        "priority": "high",
        "rank": -3,
        "command": ["/bin/echo", "a: b"],
        "max_retries": 0,
        "retry_delay_s": 1.5,
        "timeout_s": 2,
        "after": ["b"],
        "env": {"A": "1"},
        "cwd": "/tmp",
        "tags": ["x"],
    }
    as_lines = "\n".join(
        f"  {name} :  {value if isinstance(value, str) else json.dumps(value)}  " for name, value in fields.items()
    )
    from_json = parse_task_file("x", json.dumps(fields, indent=2).encode())
    assert parse_task_file("x", as_lines.encode()) == from_json
    assert from_json.priority is Priority.HIGH
    assert from_json.command == ["/bin/echo", "a: b"]


def test_lines_skip_blanks_and_comments_and_split_at_the_first_colon() -> None:
    task = parse_task_file("j", b"# a comment\n\ncommand: echo a:b # kept\n   # another\npriority: LOW\n")
    assert task.command == "echo a:b # kept"
    assert task.priority is Priority.LOW
    assert task.id == "j"


def test_the_seeds_files_are_taken() -> None:
    data = b"id:t1\nname:train\npriority:HIGH\ntype:ml\nduration_ms:250\nattempts:2\ncreated_at_ms:1700000000000\n"
    task = parse_task_file("whatever", data)
    assert (task.id, task.name, task.type, task.duration_ms) == ("t1", "train", TaskType.ML, 250)


def test_a_shell_test_in_brackets_is_a_command_line_not_a_broken_list() -> None:
    assert parse_task_file("j", b"command: [ -e /tmp ] && [ -d /tmp ]").command == "[ -e /tmp ] && [ -d /tmp ]"


def test_byte_order_mark_and_crlf() -> None:
    task = parse_task_file("j", b"\xef\xbb\xbfcommand: true\r\nrank: 5\r\n")
    assert (task.command, task.rank) == ("true", 5)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("", ["empty"]),
        (" \n\n", ["empty"]),
        ("{", ["line 1", "no valid JSON"]),
        ('{\n "rank": 1,\n "rank" }', ["line 3", "no valid JSON"]),
        ("[1]", ["no object"]),
        ("{}x", ["no valid JSON"]),
        ("[" * 100_000, ["JSON"]),
        ("command true", ["line 1", "no colon"]),
        ("command: true\nprioritty: HIGH", ["line 2: prioritty", "did you mean priority?"]),
        ('{"command": "true",\n\n"prioritty": "HIGH"}', ["line 3: prioritty", "did you mean priority?"]),
        ("command: true\nrank: five", ["line 2: rank", "'five'"]),
        ("command: true\nrank: 1.5", ["line 2: rank", "1.5"]),
        ("rank: 1\nrank: 2", ["line 2: rank", "line 1"]),
        ("\n\npriority: URGENT", ["line 3: priority", "HIGH, MED or LOW"]),
        ("id: ../../etc/passwd", ["line 1: id", "../../etc/passwd"]),
        ("max_retries: 101", ["line 1: max_retries", "100"]),
        ('env: {"A": 1}', ["line 1: env.A"]),
        ("type: ml\nentrypoint: nothing", ["line 2: entrypoint", "module:function"]),
        ("command: true\nreuse: true", ["reuse needs an entrypoint"]),
        ("type: ml\nentrypoint: a:b\nreuse: 1", ["line 3: reuse", "bool"]),
        ("cwd: tmp", ["line 1: cwd", "absolute"]),
        (b"command: \xff", ["line 1", "UTF-8"]),
        (b"x" * (1024 * 1024 + 1), ["larger than 1048576 bytes"]),
    ],
)
def test_a_bad_file_is_told_where_and_what(data: bytes | str, parts: list[str]) -> None:
    text = reason(data)
    for part in parts:
        assert part in text


@given(st.text(max_size=300))
def test_an_id_derives_from_any_file_name(stem: str) -> None:
    derived = id_from_stem(stem)
    assert is_valid_id(derived)
    assert derived == stem if is_valid_id(stem) else derived != stem


@given(st.text(max_size=40), st.text(max_size=40))
def test_different_names_give_different_ids(one: str, other: str) -> None:
    assert (id_from_stem(one) == id_from_stem(other)) == (one == other)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_task_or_an_error(data: bytes) -> None:
    try:
        outcome: Task | str = parse_task_file("x", data)
    except TaskError as error:
        outcome = str(error)
    assert isinstance(outcome, Task) or "\n" not in outcome


def test_files_that_are_alike_give_tasks_that_differ_by_name_alone() -> None:
    one, other = parse_task_file("one", b"command: true\nrank: 3"), parse_task_file("other", b"command: true\nrank: 3")
    assert (one.id, other.id) == ("one", "other")
    assert one.model_copy(update={"id": "other"}) == one.named("other") == other
    assert one.named("other").model_fields_set == other.model_fields_set
    assert parse_task_file("one", b"id: own") == parse_task_file("other", b"id: own")


def test_a_file_may_not_name_itself_even_if_it_is_like_another() -> None:
    assert parse_task_file("one", b'after: ["other"]').after == ["other"]
    with pytest.raises(TaskError, match="after names the task itself"):
        parse_task_file("other", b'after: ["other"]')
