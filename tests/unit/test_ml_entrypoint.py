"""Calling a function as a job: what it gets, what becomes of its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MODULE = """
import asyncio, os, sys
import numpy as np

CONSTANT = 3

class Nested:
    @staticmethod
    def double(n):
        return 2 * n

def add(a, b=10):
    print("adding")
    return {"sum": a + b}

def none():
    with open(os.environ["PYSCHED_RESULT"], "w") as file:
        file.write('"by hand"')

def numbers():
    return {"loss": np.float32(0.5), "row": np.arange(3)}

async def later(n):
    await asyncio.sleep(0)
    return n

def fails():
    raise LookupError("no such thing")

def fails_badly():
    raise LookupError("\\0\\ud800" + "x" * 500_000 + "\\U0001f600" * 500_000)

class Mute(Exception):
    def __str__(self):
        return 1 / 0

def fails_to_say():
    raise Mute

def exits(code=7):
    sys.exit(code)

def unserialisable():
    return {1, 2}

def not_finite():
    return float("nan")

def surrogate():
    return "\\ud800"

def endless():
    value = []
    value.append(value)
    return value

def big(n=65_534):
    return "x" * n
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs.py").write_text(MODULE)
    (tmp_path / "halfway.py").write_text("import no_such_dependency\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "out").mkdir()
    return tmp_path


def call(folder: Path, target: str, params: str | None = None, *, result: bool = True, more: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    if params is not None:
        env["PYSCHED_PARAMS"] = params
    if result:
        env["PYSCHED_RESULT"] = str(folder / "out" / "result")
    command = [sys.executable, "-m", "pysched.ml.entrypoint", target, *more]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def result_of(folder: Path) -> object:
    assert os.listdir(folder / "out") == ["result"]  # and no temporary file
    return json.loads((folder / "out" / "result").read_text())


def error_of(folder: Path) -> dict[str, Any]:
    found = result_of(folder)
    assert isinstance(found, dict)
    assert set(found) == {"error"}
    error: dict[str, Any] = found["error"]
    return error


@pytest.mark.parametrize(
    ("target", "params", "result"),
    [
        ("jobs:add", '{"a": 1}', {"sum": 11}),
        ("jobs:add", '{"a": 1, "b": 2}', {"sum": 3}),
        ("jobs:Nested.double", '{"n": 4}', 8),
        ("jobs:numbers", None, {"loss": 0.5, "row": [0, 1, 2]}),
        ("jobs:later", '{"n": 5}', 5),
        ("jobs:none", "", "by hand"),
        ("jobs:big", '{"n": 65534}', "x" * 65534),
        ("os.path:basename", '{"p": "/a/b"}', "b"),
    ],
)
def test_the_return_value_becomes_the_result(folder: Path, target: str, params: str | None, result: object) -> None:
    done = call(folder, target, params)
    assert (done.returncode, done.stderr) == (0, "")
    assert result_of(folder) == result


def test_ml_task_is_an_entrypoint(folder: Path) -> None:
    done = call(folder, "pysched.ml.ml_task:train", '{"duration_ms": 0}')
    assert done.returncode == 0, done.stderr
    result = result_of(folder)
    assert isinstance(result, dict)
    assert result["epochs"] == 1


def test_prints_the_result_when_nobody_takes_it(folder: Path) -> None:
    done = call(folder, "jobs:add", '{"a": 1}', result=False)
    assert done.stdout == 'adding\n{"sum": 11}\n'


@pytest.mark.parametrize(
    ("target", "params", "says"),
    [
        ("jobs", None, "'jobs' is no entrypoint; it should be module:function"),
        ("nowhere:f", None, "nowhere:f: no module named 'nowhere' in "),
        ("jobs.inner:f", None, "jobs.inner:f: no module named 'jobs.inner' in "),
        ("jobs:nothing", None, "jobs:nothing: 'jobs' has no attribute 'nothing'"),
        ("jobs:Nested.half", None, "jobs:Nested.half: 'jobs.Nested' has no attribute 'half'"),
        ("jobs:CONSTANT", None, "jobs:CONSTANT: 'jobs.CONSTANT' is not callable, it is of type int"),
        ("jobs:add", "{}", "jobs:add: params do not fit add(a, b=10): missing a required argument: 'a'"),
        ("jobs:add", '{"a": 1, "c": 2}', "params do not fit add(a, b=10): got an unexpected keyword argument 'c'"),
        ("jobs:add", "[1]", "PYSCHED_PARAMS holds a JSON list; it should be an object"),
        ("jobs:add", "{a: 1}", "PYSCHED_PARAMS is not JSON"),
    ],
)
def test_a_call_that_cannot_be_made(folder: Path, target: str, params: str | None, says: str) -> None:
    done = call(folder, target, params)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("entrypoint: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    error = error_of(folder)
    assert (error["type"], error["traceback"]) == ("EntrypointError", None)
    assert f"entrypoint: {error['message']}\n" == done.stderr


def test_more_than_one_argument(folder: Path) -> None:
    done = call(folder, "jobs:add", more=("jobs:none",))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("target", "last", "first_frame"),
    [
        ("jobs:fails", "LookupError: no such thing", "jobs.py"),
        ("halfway:f", "ModuleNotFoundError: No module named 'no_such_dependency'", "halfway.py"),
        ("broken:f", "SyntaxError", "broken.py"),
    ],
)
def test_an_exception_shows_the_users_traceback(folder: Path, target: str, last: str, first_frame: str) -> None:
    done = call(folder, target)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(last)
    frames = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert first_frame in frames[0]  # not a frame of ours, nor of the import machinery
    error = error_of(folder)
    assert last.startswith(error["type"])
    assert error["message"].split(" (")[0] in done.stderr
    assert error["traceback"] == done.stderr


def test_what_an_exception_says_fits_a_result_that_a_database_holds(folder: Path) -> None:
    assert call(folder, "jobs:fails_badly").returncode == 1
    error = error_of(folder)
    assert error["message"].startswith("\ufffd?xx")
    assert os.path.getsize(folder / "out" / "result") <= 64 * 1024
    assert call(folder, "jobs:fails_to_say").returncode == 1
    assert error_of(folder)["message"] == "<its message cannot be had: ZeroDivisionError>"


@pytest.mark.parametrize(("params", "code"), [("{}", 7), ('{"code": 0}', 0), ('{"code": "stop"}', 1)])
def test_sys_exit_is_respected(folder: Path, params: str, code: int) -> None:
    assert call(folder, "jobs:exits", params).returncode == code
    assert os.listdir(folder / "out") == []


@pytest.mark.parametrize(
    ("target", "params", "says"),
    [
        ("jobs:unserialisable", None, "the returned set is not JSON: a value of type set has no JSON form"),
        ("jobs:not_finite", None, "the returned float is not JSON"),
        ("jobs:surrogate", None, "the returned str is not JSON"),
        ("jobs:endless", None, "the returned list is not JSON: Circular reference detected"),
        ("jobs:big", '{"n": 65535}', "the result is 65537 bytes of JSON, more than 65536"),
    ],
)
def test_a_result_that_cannot_be_kept(folder: Path, target: str, params: str | None, says: str) -> None:
    done = call(folder, target, params)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert error_of(folder)["type"] == "ResultError"
