"""`scheduler completion`: what makes a shell complete our commands."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
def command(shell: str) -> None:
    """Print the script that makes a shell complete commands, options, filters and ids.

    \b
    bash  scheduler completion bash > ~/.local/share/bash-completion/completions/scheduler
    zsh   scheduler completion zsh > "${fpath[1]}/_scheduler"
    fish  scheduler completion fish > ~/.config/fish/completions/scheduler.fish
    """
    from click.shell_completion import get_completion_class

    from pysched.cli import scheduler

    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - click knows all three
    script = completion(scheduler, {}, "scheduler", "_SCHEDULER_COMPLETE")
    click.echo(script.source_template % script.source_vars())
