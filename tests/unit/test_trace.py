"""Trace context: what is one, where it goes, and that it is no content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pysched import trace
from pysched.errors import TaskError
from pysched.executors.files import LogFolder
from pysched.executors.launch import Launcher
from pysched.model import AttemptKey
from pysched.task import Task, is_same, parse_task

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"

NO_PARENTS = [
    "",
    "x",
    PARENT.upper(),
    f"ff{PARENT[2:]}",
    f"{PARENT}-more",
    f"{PARENT}\n",
    PARENT.replace("b7ad6b7169203331", "0" * 16),
    PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
]


def test_a_context_as_headers_carry_it() -> None:
    assert trace.fields(PARENT, STATE) == {"traceparent": PARENT, "tracestate": STATE}
    assert trace.fields(PARENT, None) == trace.fields(PARENT, "ü") == trace.fields(PARENT, "x" * 513)
    assert trace.fields(None, STATE) == {}


@pytest.mark.parametrize("text", NO_PARENTS)
def test_what_is_none_is_left_out_of_headers_and_refused_in_a_task(text: str) -> None:
    assert trace.fields(text, STATE) == {}
    with pytest.raises(TaskError, match="traceparent"):
        parse_task({"traceparent": text})


def test_a_state_needs_a_parent() -> None:
    with pytest.raises(TaskError, match="traceparent"):
        parse_task({"tracestate": STATE})


def test_a_task_keeps_its_own() -> None:
    context = trace.fields(PARENT, STATE)
    assert parse_task({"id": "a"}).traced(context) == parse_task({"id": "a", **context})
    assert parse_task({"traceparent": OTHER}).traced(context) == parse_task({"traceparent": OTHER})
    assert parse_task({}).traced({}).traceparent is None


def test_it_is_kept_and_is_no_content() -> None:
    def spec(**fields: Any) -> str:
        return parse_task({"command": "true", "env": {"A": '"traceparent":'}, **fields}).spec()

    traced = spec(traceparent=PARENT, tracestate=STATE)
    assert Task.from_spec("a", traced).tracestate == STATE
    assert is_same(traced, spec())
    assert is_same(spec(), traced)
    assert is_same(traced, spec(traceparent=OTHER))
    assert not is_same(traced, spec(traceparent=PARENT, tracestate=STATE, rank=1))
    assert not is_same(spec(), spec(rank=1))


def test_a_reuse_that_is_denied_is_kept_and_is_no_content() -> None:
    """Earlier versions stored it as nothing at all."""

    def spec(**fields: Any) -> str:
        return parse_task({"type": "ml", "entrypoint": "m:f", "params": {"reuse": False}, **fields}).spec()

    assert Task.from_spec("a", spec(reuse=False)).reuse is False
    assert Task.from_spec("a", spec()).reuse is None
    assert is_same(spec(), spec(reuse=False))
    assert is_same(spec(reuse=False, traceparent=PARENT), spec())
    assert not is_same(spec(reuse=True), spec(reuse=False))
    assert not is_same(spec(reuse=False), spec(reuse=False, rank=1))
    assert not is_same(spec(), spec(params={}))


def variables(tmp_path: Path, **fields: Any) -> dict[bytes, bytes]:
    launcher = Launcher(node="n", work=tmp_path, logs=LogFolder(tmp_path), environ={"TRACEPARENT": "the node's"})
    program = launcher.prepare(AttemptKey(id="a", attempt=1, token=1), parse_task({"command": ["true"], **fields}))
    return dict(entry.split(b"=", 1) for entry in program.pattern.env if entry.startswith(b"TRACE"))


def test_the_job_gets_it(tmp_path: Path) -> None:
    assert variables(tmp_path) == {}
    assert variables(tmp_path, traceparent=PARENT, tracestate=STATE) == {
        b"TRACEPARENT": PARENT.encode(),
        b"TRACESTATE": STATE.encode(),
    }
    assert variables(tmp_path, traceparent=PARENT, env={"TRACEPARENT": "mine"}) == {b"TRACEPARENT": b"mine"}
