"""The command line in this process, without the settings of the person who runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command_line import CommandLine


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PYSCHED_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("pysched.discovery.default_home", lambda: tmp_path / "home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pysched.client.calls.BACKOFF_S", 0.0)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)
