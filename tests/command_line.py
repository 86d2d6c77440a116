"""The command line in this process: quick, and all that `main` does is done."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import pytest

from pysched.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs `scheduler …`, without a terminal, with nothing on standard input unless `given`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: str, given: str = "") -> Done:
        self._monkeypatch.setattr(sys, "argv", ["scheduler", *words])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        assert "Traceback" not in err
        return Done(code, out, err)

    def fails(self, code: int, *words: str, given: str = "") -> str:
        """The one line in which it says why."""
        done = self(*words, given=given)
        assert done.code == code, done
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        return done.err.removeprefix("error: ").removesuffix("\n")
