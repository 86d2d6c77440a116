"""What the benchmarks share: the compiled baseline, and a way to say figures while pytest captures output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.baseline import Baseline, build


@pytest.fixture(scope="session")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return build(Path(tmp_path_factory.mktemp("baseline")))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print, past pytest's capture."""

    def speak(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", flush=True)

    return speak
