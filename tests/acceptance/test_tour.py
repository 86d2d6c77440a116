"""docs/tour.md is true: every command runs, in order, against `scheduler up`, and prints what stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pysched.store.embedded import EmbeddedServer
from tests.acceptance.conftest import Process
from tests.database import open_home

TOUR = Path(__file__).parents[2] / "docs" / "tour.md"
_PATIENCE_S = 300.0  # for one command; only a defect takes it
_FAILURE = re.compile(r'^error: |"error": |^\S+ failed: ')  # after which a command does not exit with 0
ANYTHING = "…"  # in a line: the rest of a word or more; alone on a line: any number of lines


@dataclass(frozen=True, slots=True)
class Step:
    """A command of the page and what it is to print."""

    line: int
    command: str
    output: list[str]


def steps(text: str) -> Iterator[Step]:
    inside = False
    step: Step | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith("$ "):
            if step is not None:
                yield step
            step = Step(number, line[2:], [])
        elif inside:
            assert step is not None, f"line {number} is the output of no command"
            step.output.append(line)
    if step is not None:
        yield step


def pattern(lines: list[str]) -> re.Pattern[str]:
    """What output may look like; spaces count for nothing, as columns are as wide as what stands in them."""
    parts = []
    for line in lines:
        if line == ANYTHING:
            parts.append(r"(?:.*\n)*?")
            continue
        words = [".*".join(map(re.escape, word.split(ANYTHING))) for word in line.split()]
        parts.append(r"\s*" + r"[^\S\n]+".join(words) + r"[^\S\n]*\n" if words else r"\n")
    return re.compile("".join(parts))


@pytest.fixture(scope="module")
def everything() -> Iterator[dict[str, str]]:
    """The environment of somebody whose `scheduler up` runs in the other terminal."""
    with open_home() as folder:
        home = folder / "home"
        (folder / "bin").mkdir()
        script = folder / "bin" / "scheduler"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pysched.cli "$@"\n')
        script.chmod(0o755)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
        environ |= {
            "PYSCHED_HOME": str(home),
            "PATH": f"{script.parent}:{environ['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        log = folder / "up.log"
        server = Process(["up", "--home", str(home), "--port", "0", "--workers", "2"], log, environ)
        try:
            server.await_message("listening on")
            server.await_message("ready")
            yield environ
        finally:
            if server.popen.poll() is None:
                server.terminate()
            EmbeddedServer(home).destroy()


@pytest.mark.timeout(1200)
def test_the_tour(everything: dict[str, str]) -> None:
    code = 0
    count = 0
    for step in steps(TOUR.read_text()):
        done = subprocess.run(
            ["bash", "-c", f"(exit {code}); {step.command}"],
            env=everything, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_PATIENCE_S, cwd="/", check=False,
        )  # fmt: skip
        code = done.returncode
        where = f"{TOUR.name}, line {step.line}: {step.command}\nprinted:\n{done.stdout}"
        assert pattern(step.output).fullmatch(done.stdout), where
        if not step.command.startswith("scheduler doctor"):  # which may find something
            assert (code != 0) == any(_FAILURE.search(line) for line in step.output), where
        count += 1
    assert count > 40


def test_what_differs_is_not_taken_for_the_same() -> None:
    assert pattern(["submitted …"]).fullmatch("submitted 01a2\n")
    assert not pattern(["submitted …"]).fullmatch("submitted 01a2\nmore\n")
    assert pattern(["a", ANYTHING, "b"]).fullmatch("a\nx\ny\nb\n")
    assert not pattern(["a b"]).fullmatch("a c\n")
    assert not pattern([]).fullmatch("x\n")


def test_every_command_of_the_page_is_found() -> None:
    found = list(steps(TOUR.read_text()))
    assert sum(line.startswith("$ ") for line in TOUR.read_text().splitlines()) == len(found)
