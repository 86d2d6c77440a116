"""When a text command runs without a shell: only if nobody can tell the difference."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched.executors.files import LogFolder
from pysched.executors.launch import Launcher
from pysched.executors.shell import found, plain_words
from pysched.model import AttemptKey
from pysched.task import Task, parse_task


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/bin/true", ["/bin/true"]),
        (
            "python3 -m train --lr=0.1 data/a_b.csv,c@d:8%",
            ["python3", "-m", "train", "--lr=0.1", "data/a_b.csv,c@d:8%"],
        ),
        ("  ls \t -l  ", ["ls", "-l"]),
        ("env A=1 ls", ["env", "A=1", "ls"]),
    ],
)
def test_plain_words(command: str, words: list[str]) -> None:
    assert plain_words(command, {}) == words


@pytest.mark.parametrize("syntax", [*"|&;<>()$`\\\"'*?[]#~!{}^\n\r\v\f\0", "ä", "\u00a0"])
def test_any_syntax_needs_a_shell(syntax: str) -> None:
    assert plain_words(f"ls a{syntax}b", {}) is None


@pytest.mark.parametrize("command", ["cd /", "exit 3", "A=1 ls", "echo hi", ". /x", ": x", "if a", "", "   ", "true"])
def test_what_a_shell_does_itself(command: str) -> None:
    assert plain_words(command, {}) is None


def test_a_variable_that_steers_the_shell() -> None:
    assert plain_words("ls", {"SHELLOPTS": "xtrace"}) is None
    assert plain_words("ls", {"LANG": "C"}) == ["ls"]


@given(st.text(alphabet="ab1 \t-=/.,:@%+_~#'\"$\\*;\n", max_size=30))
def test_the_words_are_those_of_the_shell(text: str) -> None:
    words = plain_words(f"printenvx {text}", {})
    if words is not None:
        script = f'printenvx() {{ for word in "$@"; do printf "%s\\0" "$word"; done; }}\nprintenvx {text}'
        out = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True).stdout
        assert out.decode().split("\0")[:-1] == words[1:]


def test_only_what_the_shell_would_find(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    (first / "tool").mkdir()  # no file
    (second / "tool").write_text("#!/bin/sh\n")
    path = f"{first}:{second}"
    assert found("tool", path) is None  # not executable: the shell shall say so
    (second / "tool").chmod(0o755)
    assert found("tool", path) == f"{second}/tool"
    assert found("tool", f".:{second}") is None
    assert found("tool", f":{second}") is None
    assert found("missing", path) is None
    assert found(f"{second}/tool", "") == f"{second}/tool"
    assert found("b/tool", path) is None


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    return Launcher(node="n", work=tmp_path, logs=LogFolder(tmp_path), environ={"PATH": os.environ["PATH"]})


def _prepare(launcher: Launcher, task: Task) -> list[bytes]:
    return list(launcher.prepare(AttemptKey(id="t", attempt=1, token=1), task).pattern.argv)


def test_a_plain_command_starts_directly_and_knows_its_folder(launcher: Launcher, tmp_path: Path) -> None:
    program = launcher.prepare(AttemptKey(id="t", attempt=1, token=1), parse_task({"command": "env -u X"}))
    assert program.pattern.argv == (b"env", b"-u", b"X")
    assert program.pattern.candidates == (os.fsencode(shutil.which("env") or ""),)
    assert os.fsencode(f"PWD={tmp_path.resolve()}") in program.env


@pytest.mark.parametrize("command", ["no-such-program-here x", "env | cat", "/"])
def test_the_rest_goes_through_the_shell(launcher: Launcher, command: str) -> None:
    assert _prepare(launcher, parse_task({"command": command})) == [b"/bin/sh", b"-c", command.encode()]
