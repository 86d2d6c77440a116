"""The command line `scheduler`: one file a command, imported when that command is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from pysched.errors import PyschedError

_COMMANDS = {
    "run": "a node: watches a queue folder, runs tasks, writes .done files",
    "up": "everything: the embedded database, a node and the API",
    "demo": "everything on a throw-away home, with a mixed workload",
    "api": "the control plane alone",
    "plot": "draw profiler.csv in the terminal and as HTML",
}


class Commands(click.Group):
    """Loads a command's module only when it is needed, so that `scheduler ls` never imports a server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"pysched.cli.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`scheduler --workers 8 …` is `scheduler run --workers 8 …`."""
        if not args:
            args = ["--help"]
        elif args[0].startswith("-") and args[0] not in {"--help", "-h", "--version", "--debug"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


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
        result: Any = scheduler.main(prog_name="scheduler", standalone_mode=False)
    except PyschedError as error:
        _fail(str(error), error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "scheduler"
        _fail(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: say nothing more
        sys.exit(1)
    except OSError as error:
        _fail(str(error), 1)
    sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    if debugging():
        import traceback

        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def debugging() -> bool:
    return os.environ.get("PYSCHED_DEBUG", "") not in {"", "0"}
