"""The command line as a whole: what it imports, how it fails, how it is listed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pysched import cli
from tests.command_line import CommandLine

CLIENT_COMMANDS = (
    "submit", "cancel", "retry", "wait", "queue", "ls", "show", "logs", "explain", "top", "stats", "nodes", "export",
    "token", "completion",
)  # fmt: skip
# What would cost a client command more than it may take as a whole, or drags such a thing along.
SLOW = {
    "asyncio", "fastapi", "httpx", "httpx2", "numpy", "plotext", "plotly", "psycopg", "pydantic", "pydantic_settings",
    "rich", "starlette", "structlog", "uvicorn", "importlib.metadata", "pysched._core", "pysched.settings",
    "pysched.task", "concurrent.futures.process", "multiprocessing", "logging", "xml", "sqlite3", "urllib.request",
}  # fmt: skip


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYSCHED_")}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=True
    )


def test_client_commands_import_nothing_slow() -> None:
    """All of them at once, with the client that they share."""
    script = (
        "import sys, importlib, pysched.client.blocking\n"
        "for name in sys.argv[1:]: importlib.import_module(f'pysched.cli.{name}').command\n"
        "print(*sys.modules)"
    )
    loaded = set(python(script, *(name for name in CLIENT_COMMANDS if name != "export")).stdout.split())
    assert loaded & SLOW == set()
    assert "pysched.cli.submit" in loaded


def test_every_command_is_there_and_explains_itself(scheduler: CommandLine) -> None:
    names = cli.scheduler.list_commands(None)  # type: ignore[arg-type]
    assert set(CLIENT_COMMANDS) < set(names)
    listed = scheduler("--help").out
    for name in names:
        assert f"\n  {name} " in listed
        done = scheduler(name, "--help")
        assert done.code == 0
        assert done.out.startswith(f"Usage: scheduler {name}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "there is no command 'lst'; did you mean ls?"),
        (["zzzzzz"], "there is no command 'zzzzzz'; see scheduler --help"),
        (["queue", "stop"], "there is no command 'stop'; did you mean pause or resume?"),
        (["token", "lst"], "there is no command 'lst'; did you mean list?"),
        (["queue"], "name a command: pause, resume; see scheduler queue --help"),
        (["--home", "/x", "zzzzzz"], "there is no command 'zzzzzz'; see scheduler --help"),
        (["submit", "--prority", "high"], "No such option '--prority'."),
        (["submit", "-T", "5x", "--", "true"], "'5x' has the unit 'x'; use ms, s, m, h, d, w"),
        (["ls", "-n", "0"], "0 is not in the range x>=1"),
        (["ls", "-c", "nmae"], "'nmae' is no column; did you mean name?"),
        (["ls", "-s", "zzz"], "'zzz' is no column; they are row, id, "),
        (["show"], "Missing argument 'SELECTOR...'"),
        (["wait"], "nothing to wait for; name a task, last, or --all"),
        (["retry"], "nothing to retry"),
        (["cancel", "staus=failed"], "did you mean status?"),
        (["submit", "--array", "5-x", "--", "true"], "--array 5-x: is no range"),
        (["submit", "--array", "5-1", "--", "true"], "has 0 numbers"),
        (["submit", "-e", "NO_SUCH_VARIABLE_HERE", "--", "true"], "is not set here"),
        (["submit", "--param", "x", "--", "true"], "write NAME=VALUE"),
        (["submit", "-f", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["submit", "-f", "x", "--", "true"], "--file brings whole tasks"),
        (["submit", "--each-line", "-", "--array", "1-2", "--", "true"], "keep one"),
        (["ls", "--url", "127.0.0.1:5"], "write http://HOST:PORT"),
        (["logs", "x", "-f", "-n", "3"], "leave out --lines"),
        (["top"], "top needs a terminal"),
        (["token", "create", "a", "--scope", "rad"], "'rad' is not one of 'read', 'submit', 'admin'"),
        (["completion", "csh"], "'csh' is not one of"),
        (["run", "--workers", "many"], "'many' is not a valid integer"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_right(scheduler: CommandLine, words: list[str], message: str) -> None:
    assert message in scheduler.fails(2, *words)


@pytest.mark.parametrize("words", [["ls"], ["submit", "--", "true"], ["cancel", "x"], ["wait", "x"], ["stats"]])
def test_nobody_at_the_address_is_exit_code_4(scheduler: CommandLine, words: list[str]) -> None:
    at = words.index("--") if "--" in words else len(words)
    said = scheduler.fails(4, *words[:at], "--url", "http://127.0.0.1:1", *words[at:])
    assert said.startswith("no server answers at http://127.0.0.1:1 (Connection refused); start one with")


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["--url", "U", "ls", "-n", "3"], ["ls", "--url", "U", "-n", "3"]),
        (["--url=U", "-ojson", "--debug", "ls"], ["--debug", "ls", "--url=U", "-ojson"]),
        (["-o", "json", "queue", "pause", "-q"], ["queue", "pause", "-o", "json", "-q"]),
        (["--home", "H", "run", "--workers", "2"], ["run", "--home", "H", "--workers", "2"]),
        (["--home", "ls", "ls"], ["ls", "--home", "ls"]),
        (["--home", "H", "--workers", "2"], ["run", "--home", "H", "--workers", "2"]),
        (["--workers", "2", "--home", "H"], ["run", "--workers", "2", "--home", "H"]),
        (["--home", "H"], ["run", "--home", "H"]),
        (["--home"], ["run", "--home"]),
        (["submit", "--", "x", "--url", "U"], ["submit", "--", "x", "--url", "U"]),
        (["--debug", "ls"], ["--debug", "ls"]),
        ([], ["--help"]),
    ],
    ids=" ".join,
)
def test_what_commands_have_in_common_may_come_first(words: list[str], same: list[str]) -> None:
    assert cli.in_order(words) == same


class TestErrorsAsJson:
    @pytest.mark.parametrize(
        "words",
        [["-o", "json"], ["--output=json"], ["--output", "json"], ["-ojson"]],
        ids=lambda words: " ".join(words),
    )
    def test_where_it_was_asked_for(self, scheduler: CommandLine, words: list[str]) -> None:
        done = scheduler("ls", "sttus=x", *words)
        assert (done.code, done.out) == (2, "")
        document = json.loads(done.err)
        assert document["version"] == 1
        assert document["error"]["kind"] == "usage"
        assert document["error"]["exit_code"] == 2
        assert document["error"]["message"].endswith("did you mean status?")

    def test_also_of_options(self, scheduler: CommandLine) -> None:
        assert json.loads(scheduler("ls", "-o", "json", "--nope").err)["error"]["kind"] == "usage"

    def test_by_the_environment(self, scheduler: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYSCHED_OUTPUT", "json")
        done = scheduler("ls", "--url", "http://127.0.0.1:1")
        assert done.code == 4
        assert json.loads(done.err)["error"]["kind"] == "unreachable"

    def test_not_for_the_words_of_a_command(self, scheduler: CommandLine) -> None:
        scheduler.fails(2, "submit", "-T", "x", "--", "tool", "-o", "json")


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scheduler", "--debug", "ls", "--url", "http://127.0.0.1:1"])
    monkeypatch.setenv("PYSCHED_DEBUG", "0")  # undone with the test
    with pytest.raises(SystemExit):
        cli.main()
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(scheduler: CommandLine, shell: str, tmp_path: Path) -> None:
    script = scheduler("completion", shell).out
    assert "_SCHEDULER_COMPLETE" in script
    if shell == "bash":
        (tmp_path / "script").write_text(script)
        assert subprocess.run(["bash", "-n", tmp_path / "script"], timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("scheduler su", ["submit"]),
        ("scheduler cancel status=f", ["status=failed"]),
        ("scheduler cancel l", ["last"]),
        ("scheduler submit --pri", ["--priority"]),
    ],
)
def test_what_a_shell_is_offered(words: str, offered: list[str]) -> None:
    environ = {
        **os.environ, "_SCHEDULER_COMPLETE": "bash_complete", "COMP_WORDS": words, "PYSCHED_URL": "http://127.0.0.1:1",
        "COMP_CWORD": str(len(words.split()) - 1),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pysched.cli"], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert [line.partition(",")[2] for line in done.stdout.split()] == offered
    assert done.stderr == ""
