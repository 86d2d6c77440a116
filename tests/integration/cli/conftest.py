"""Client commands against a real control plane, whose one node does what a test says."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.integration.api.conftest import TOKEN, Api
from tests.integration.api.conftest import api as api


@pytest.fixture(autouse=True)
def _here(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("PYSCHED_", "TRACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYSCHED_URL", api.url)
    monkeypatch.setenv("PYSCHED_TOKEN", TOKEN)
    monkeypatch.setenv("PYSCHED_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A tag of the test's own: the tasks of the others are there, too."""
    return f"tag-{abs(hash(request.node.name))}"


@pytest.fixture
def working(api: Api) -> Iterator[None]:
    """Every task that can start ends at once, well."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):  # its poll interval
            api.worker.run_all()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
