"""What an attempt is made of before it has its launch."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched._core import Pattern, Program
from pysched.executors.files import NAMES, LogFolder
from pysched.executors.launch import Launcher
from pysched.model import AttemptKey, TaskType, mark_of
from pysched.task import Task

_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
_PATTERN = Pattern(argv=[b"a"], candidates=[b"/a"], env=[b"A=1"], cwd=b"/")


@given(task_id=_IDS, attempt=st.integers(1, 2**31 - 1), node=st.uuids())
def test_an_attempt_is_known_by_the_same_mark_everywhere(task_id: str, attempt: int, node: object) -> None:
    program = Program(_PATTERN, task_id, attempt, str(node), "/stem", NAMES)
    assert program.mark == mark_of(task_id, attempt, str(node))


@given(task_id=_IDS, attempt=st.integers(1, 999))
def test_it_knows_itself_and_its_files(task_id: str, attempt: int) -> None:
    root = "/home/\udcff and more"  # a folder whose name is not UTF-8
    logs = LogFolder(Path(root))
    launcher = Launcher(node="n", work=Path("/"), logs=logs, environ={})
    program = launcher.prepare(AttemptKey(task_id, attempt, 1), Task(id=task_id, command=["true"]))
    files = logs.of(task_id, attempt)
    assert (program.stdout, program.stderr, program.result, program.progress) == files
    stem = b"/home/\xff and more/" + files.stdout.removesuffix(".out").removeprefix(f"{root}/").encode()
    assert program.env == [
        b"PYSCHED_TASK_ID=%b" % task_id.encode(),
        b"PYSCHED_ATTEMPT=%d" % attempt,
        b"PYSCHED_NODE=n",
        b"PYSCHED_RESULT=%b.result" % stem,
        b"PYSCHED_PROGRESS=%b.progress" % stem,
    ]


@pytest.mark.parametrize(("bytes_", "warm"), [(1_000, True), (60_000, True), (140_000, False)])
def test_what_is_too_large_for_the_zygote_starts_cold(tmp_path: Path, bytes_: int, warm: bool) -> None:
    launcher = Launcher(node="n", work=tmp_path, logs=LogFolder(tmp_path), environ={}, warm=True)
    task = Task(id="t", type=TaskType.ML, entrypoint="m:f")
    params = '{"a":"' + "x" * bytes_ + '"}'
    program = launcher.prepare(AttemptKey("t", 1, 1), task, params)
    assert program.warm is warm
    assert program.pattern.argv[0] == b"entrypoint" if warm else program.pattern.argv[0] != b"entrypoint"
    assert program.env[-1] == b"PYSCHED_PARAMS=" + params.encode()
