"""The system simulation: half of the time on the processor, half asleep."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

_SPEC = importlib.util.find_spec("pysched.ml.system_task")
assert _SPEC is not None
assert _SPEC.origin is not None
PROGRAM = Path(_SPEC.origin)


def test_burns_half_and_sleeps_half() -> None:
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-I", "-S", PROGRAM, "--duration_ms", "600"])
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert 0.6 <= elapsed < 10
    assert 0.02 < usage.ru_utime + usage.ru_stime < 0.45  # less than 0.3 only on a crowded machine


def test_imports_built_in_modules_only() -> None:
    tree = ast.parse(PROGRAM.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= set(sys.builtin_module_names)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("flags", [[], ["--duration_ms=0"], ["--duration_ms", "1"]])
def test_good_arguments(flags: list[str]) -> None:
    assert subprocess.run([sys.executable, "-I", "-S", PROGRAM, *flags], timeout=30).returncode == 0


@pytest.mark.parametrize(
    "flags", [["--duration_ms"], ["--duration_ms", "-1"], ["--duration_ms", "1e3"], ["--duration_ms=99999999"],
              ["--duration_ms", "9" * 5000], ["--speed", "3"]]
)  # fmt: skip
def test_bad_arguments_get_one_line(flags: list[str]) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", PROGRAM, *flags], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith("system_task: ")
    assert done.stderr.count("\n") == 1
