"""`scheduler run`: a node, under a guard that starts it again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Any

import click

from pysched.cli import debugging, guarding, options
from pysched.cli.lifeline import follow_parent


@click.command("run")
@options.node
@options.home
@options.database
@options.parent
@options.guard
def command(parent_pid: int | None, guard: str | None, **given: Any) -> int:
    """Run a node: take in .task files and queued tasks, run them, write .done files.

    TERM or ^C drains: running jobs end first; a second one stops at once and hands them back.
    """
    if guard is None or parent_pid is None:
        return guarding.keep(["run"], given)

    from pysched import logs, settings
    from pysched.guard import Link
    from pysched.incarnation import Incarnation
    from pysched.listening import RELOAD

    logs.configure(debug=debugging())
    incarnation = Incarnation(settings.load(**given), Link.from_text(guard, parent_pid))
    _heed({signal.SIGTERM: incarnation.drain, signal.SIGINT: incarnation.drain, RELOAD: incarnation.hand_over})
    follow_parent(parent_pid)
    return incarnation.run()


def _heed(wishes: Mapping[int, Callable[[], None]]) -> None:
    """Call the wish of each signal from now on, whichever thread the kernel gives it to.

    Python runs handlers in its main thread alone, which sleeps until the node stops.  Of a signal that came while the
    process stood still (SIGSTOP), the kernel may wake another thread, and the main one would never hear of it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in wishes:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)

    def listen() -> None:
        while True:
            for number in os.read(reader, 64):
                if number in wishes:
                    wishes[number]()

    threading.Thread(target=listen, name="wakeup", daemon=True).start()
