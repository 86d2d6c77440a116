"""Mirrored files: identical tasks, atomically, and never an error for who submitted."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pysched.api.mirror import FILE_BYTES, Mirror, file_text
from pysched.task import Task, parse_task

TASKS: list[dict[str, object]] = [
    {"id": "plain"},
    {
        "id": "all",
        "name": "ünïcode \u2028",
        "type": "ml",
        "priority": "low",
        "rank": -5,
        "params": {"a": [1, None, "\t"]},
    },
    {
        "id": "list",
        "command": ["echo", "$HOME", "'", "ü\n"],
        "env": {"A": ""},
        "cwd": "/",
        "tags": ["x"],
        "after": ["plain"],
    },
    {"id": "times", "timeout_s": 0.1, "grace_s": 0, "delay_s": 1e-3, "retry_delay_s": 0.7, "max_retries": 0},
    {"id": "entry", "type": "ml", "entrypoint": "a.b:c", "duration_ms": 100},
]


@pytest.mark.parametrize("given", TASKS, ids=lambda given: str(given["id"]))
def test_a_file_reads_back_to_the_same_task(given: dict[str, object], tmp_path: Path) -> None:
    task = parse_task(given)
    Mirror(tmp_path).write([task])
    back = parse_task((tmp_path / f"{task.id}.task").read_bytes())
    assert back == task
    assert back.spec() == task.spec()


def test_nothing_but_the_files_is_left(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "made" / "here")
    mirror.prepare()
    mirror.write([parse_task(given) for given in TASKS])
    assert sorted(os.listdir(tmp_path / "made" / "here")) == sorted(f"{given['id']}.task" for given in TASKS)


def test_a_file_that_somebody_dropped_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "plain.task").write_text("name: somebody's\n")
    Mirror(tmp_path).write([parse_task({"id": "plain"}), parse_task({"id": "next"})])
    assert (tmp_path / "plain.task").read_text() == "name: somebody's\n"
    assert sorted(os.listdir(tmp_path)) == ["next.task", "plain.task"]


def test_a_folder_that_cannot_be_written_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mirror = Mirror(tmp_path / "file")
    mirror.prepare()
    mirror.write([parse_task({"id": "plain"})])
    assert (tmp_path / "file").read_text() == ""


def test_what_no_scanner_would_read_is_not_written(tmp_path: Path) -> None:
    task = parse_task({"id": "big", "command": "\x01" * 131_000, "env": {"A": "\x01" * 64_000}})
    assert len(file_text(task)) > FILE_BYTES
    Mirror(tmp_path).write([task])
    assert os.listdir(tmp_path) == []


def test_only_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    old, fresh, foreign = (tmp_path / name for name in (".mirror-old", ".mirror-fresh", ".other"))
    for path in (old, fresh, foreign):
        path.write_text("")
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    os.utime(foreign, (hour_ago, hour_ago))
    Mirror(tmp_path).prepare()
    assert sorted(os.listdir(tmp_path)) == [".mirror-fresh", ".other"]


def test_the_file_is_whole_when_its_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bytes]] = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        seen.append((os.listdir(tmp_path), Path(source).read_bytes()))
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    task: Task = parse_task({"id": "plain"})
    Mirror(tmp_path).write([task])
    [(names, content)] = seen
    assert len(names) == 1
    assert names[0].startswith(".")
    assert content == file_text(task)
