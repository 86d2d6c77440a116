"""The command line `scheduler`: one file a command, imported when that command is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from pysched.errors import PyschedError

_SECTIONS = {
    "Serve": {
        "run": "a node: watches a queue folder, runs tasks, writes .done files",
        "up": "everything: the embedded database, a node and the API",
        "demo": "everything on a throw-away home, with a mixed workload",
        "api": "the control plane alone",
        "reload": "load a new version or new settings, without stopping jobs",
    },
    "Submit and steer": {
        "submit": "a command, or tasks from files",
        "cancel": "stop tasks, or keep them from starting",
        "retry": "run failed tasks again",
        "wait": "until tasks have ended; exits with their exit code",
        "queue": "pause or resume the start of tasks",
    },
    "Look": {
        "ls": "tasks, newest first, with filters",
        "show": "one task in full, with its attempts",
        "logs": "what tasks wrote, also as they write it",
        "explain": "why a task is not running yet",
        "top": "nodes, queue and tasks, live",
        "stats": "tasks by state and priority",
        "nodes": "who does the work; drain one",
        "export": "tasks as JSON lines, CSV or GNU parallel's joblog",
        "plot": "draw profiler.csv in the terminal and as HTML",
    },
    "Set up": {
        "token": "make, list and revoke bearer tokens",
        "doctor": "check this machine, and say how to mend it",
        "completion": "for bash, zsh or fish",
    },
}
_COMMANDS = [name for section in _SECTIONS.values() for name in section]
_GROUPS = {"queue", "token"}  # whose commands have two words
_COMMON = {"--url", "--token", "--home", "--database", "--output", "-o"}  # may also come before the command


class _Interrupted(Exception):
    """^C; in a guise that click, which would print an empty line, lets pass."""


class _NobodyReads(Exception):
    """A broken pipe, likewise: click would exit with 1."""


class Group(click.Group):
    """Names the nearest command where there is none of that name, and all where none is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            raise click.UsageError(f"name a command: {', '.join(self.list_commands(ctx))}", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], known, n=1, cutoff=0.65) or (known if len(known) < 4 else [])
            right = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"there is no command {args[0]!r}{right}", ctx)
        return super().resolve_command(ctx, args)


class Commands(Group):
    """Loads a command's module only when it is needed, so that `scheduler ls` never imports a server."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise _Interrupted from None
        except BrokenPipeError:
            raise _NobodyReads from None
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        return _COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"pysched.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<10}", text) for name, text in commands.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`scheduler --workers 8 …` is `scheduler run --workers 8 …`, `scheduler --url URL ls` is `… ls --url URL`."""
        return super().parse_args(ctx, in_order(args))


def in_order(args: list[str]) -> list[str]:
    """The arguments with the command first, and behind it the options that commands have in common."""
    args = _common_last(args)
    if not args:
        return ["--help"]
    if args[0].startswith("-") and args[0] not in {"--help", "-h", "--version", "--debug"}:
        return ["run", *args]
    return args


def _common_last(args: list[str]) -> list[str]:
    debug, common, at = [], [], 0
    while at < len(args) and args[at].startswith("-"):
        option = args[at].partition("=")[0]
        if args[at] == "--debug":
            debug.append(args[at])
            at += 1
        elif option in _COMMON or args[at].startswith("-o"):
            more = 1 if args[at] == option and (option in _COMMON) else 0  # its value is a word of its own
            common += args[at : at + 1 + more]
            at += 1 + more
        else:
            return args
    if not common or at >= len(args):
        return args
    command = args[at : at + 2] if args[at] in _GROUPS else args[at : at + 1]
    return [*debug, *command, *common, *args[at + len(command) :]]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
@click.version_option(package_name="pysched", message="%(version)s")
def scheduler(debug: bool) -> None:
    """A job scheduler for ML and system jobs.

    `scheduler --workers 8 --queue DIR --completed DIR` runs a node, as `scheduler run` does.
    """
    if debug:
        os.environ["PYSCHED_DEBUG"] = "1"


def main() -> NoReturn:
    """Run the command line; every error is one line, and its exit code says its kind (CONTRACT § Command line)."""
    try:
        _main()
    except KeyboardInterrupt:  # while an error was being told
        sys.exit(130)


def _main() -> NoReturn:
    try:
        result: Any = scheduler.main(prog_name="scheduler", standalone_mode=False)
    except PyschedError as error:
        _fail(str(error), error.exit_code)
    except TimeoutError as error:  # of a command that waits; a socket's is a ServerUnreachable
        _fail(str(error), 124)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "scheduler"
        message = " ".join(error.format_message().split()).rstrip(".")
        _fail(message if message.endswith("?") else f"{message}; see {command} --help", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (_Interrupted, click.Abort, KeyboardInterrupt):
        sys.exit(130)  # who pressed ^C knows it
    except _NobodyReads:
        _silence(sys.stdout)  # nobody reads: say nothing more
        sys.exit(141)  # as a program that SIGPIPE ends
    except OSError as error:
        _fail(str(error), 1)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    if debugging():
        import traceback

        traceback.print_exc()
    if _wants_json():
        import json

        kinds = {2: "usage", 3: "not_found", 4: "unreachable", 124: "timeout"}
        error = {"kind": kinds.get(code, "failed"), "message": message, "exit_code": code}
        click.echo(json.dumps({"version": 1, "error": error}, ensure_ascii=False), err=True)
    else:
        click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _wants_json() -> bool:
    """Whether -o json was given: asked of the arguments themselves, which may be what is wrong."""
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    forms = [text.partition("=")[2] for text in own if text.startswith("--output=")]
    forms += [own[at + 1] for at, text in enumerate(own[:-1]) if text in {"-o", "--output"}]
    forms += [text[2:] for text in own if text.startswith("-o") and len(text) > 2]
    return (forms[-1] if forms else os.environ.get("PYSCHED_OUTPUT")) == "json"


def _silence(stream: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def debugging() -> bool:
    return os.environ.get("PYSCHED_DEBUG", "") not in {"", "0"}
