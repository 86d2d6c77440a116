"""`scheduler top`: the whole, live, on a full screen."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from datetime import datetime, timezone

import click

from pysched.cli import screen as drawing
from pysched.cli.screen import Screen
from pysched.cli.session import Session, client_command
from pysched.cli.units import DURATION
from pysched.errors import NotFoundError, PyschedError, ServerUnreachable

_SHOWN = 200  # tasks fetched; more than fit a screen
_KEYS = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "enter", b"\x1b[D": "left", b"\x1bOA": "up", b"\x1bOB": "down",
    b"\x1b[5~": "pageup", b"\x1b[6~": "pagedown", b"\x1b[H": "home", b"\x1b[F": "end", b"\x1b[1~": "home",
    b"\x1b[4~": "end", b"\x1b": "esc", b"\r": "enter", b"\n": "enter", b"\t": "tab", b"\x7f": "backspace",
    b"\x08": "backspace",
}  # fmt: skip


@click.command("top")
@click.option("-i", "--interval", type=DURATION, default=1.0, show_default="1s", help="Between two looks.")
@client_command
def command(session: Session, interval: float) -> None:
    """Watch nodes, queue and tasks; cancel, retry, pause and read logs with a key."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("top needs a terminal; for scripts there are stats, nodes and ls, with -o json")
    if interval < 0.1:
        raise click.UsageError("--interval: is too short; use 0.1s or more")
    session.client.stats()  # a wrong address or token is said before the screen is taken
    with _terminal():
        _run(session, interval)


def _run(session: Session, interval: float) -> None:
    screen = Screen(session.client.url)
    next_look = 0.0
    while True:
        if time.monotonic() >= next_look:
            _look(session, screen)
            next_look = time.monotonic() + interval
        _draw(screen, colour=session.colour)
        for key in _pressed(max(0.0, next_look - time.monotonic())):
            wanted = screen.press(key)
            if wanted == "quit":
                return
            if wanted:
                _do(session, screen, wanted)
                next_look = 0.0


def _look(session: Session, screen: Screen) -> None:
    try:
        status = list(drawing.VIEWS[screen.view]) or None
        page = session.client.list(status=status, limit=_SHOWN)
        stats, nodes = session.client.stats(), session.client.nodes()
        screen.take(stats, nodes, page.tasks, page.next is not None, time.monotonic())
        log = screen.log
        if log is not None:
            chunk = session.client.log(log.task_id, log.stream, log.offset)
            if chunk.attempt not in {0, log.attempt} and log.attempt:
                chunk = session.client.log(log.task_id, log.stream, 0)  # the next attempt has begun
            log.take(chunk.data, chunk.next, chunk.attempt)
        if screen.bad and screen.mode != "asked":
            screen.say("")
    except ServerUnreachable:
        screen.say(f"no server answers at {session.client.url}; trying again", bad=True)
    except NotFoundError as error:
        screen.say(str(error), bad=True)


def _do(session: Session, screen: Screen, wanted: str) -> None:
    """What a key asked for; a refusal is a message, only what nothing can mend ends the screen."""
    client = session.client
    try:
        if wanted == "pause" and screen.stats is not None:
            (client.resume if screen.stats["paused"] else client.pause)()
        elif wanted == "explain" and screen.chosen is not None:
            screen.say(client.explain(screen.chosen)["message"])
        elif wanted == "act" and screen.chosen is not None:
            answer = (client.cancel if screen.action == "cancel" else client.retry)(screen.chosen)
            screen.say(f"{screen.action}: {answer['id']} is {answer['status']} now")
    except PyschedError as error:
        screen.say(str(error))


def _draw(screen: Screen, *, colour: bool) -> None:
    size = shutil.get_terminal_size()
    lines = drawing.render(screen, datetime.now(timezone.utc), size.columns, size.lines, colour=colour)
    # Over the old picture, line by line, so that nothing flickers; each line's rest is cleared behind it.
    sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(lines) + "\x1b[K\x1b[J")
    sys.stdout.flush()


def _pressed(patience_s: float) -> list[str]:
    """The keys pressed by now, after waiting up to `patience_s` for one."""
    ready, _, _ = select.select([sys.stdin], [], [], patience_s)
    if not ready:
        return []
    data = os.read(sys.stdin.fileno(), 1024)
    if not data:
        return ["q"]  # the terminal is gone
    keys = []
    while data:
        found = next((code for code in sorted(_KEYS, key=len, reverse=True) if data.startswith(code)), data[:1])
        keys.append(_KEYS.get(found) or found.decode("ascii", "replace"))
        data = data[len(found) :]
    return keys


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """The other screen, without cursor and echo; whatever happens, the terminal is as before."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\x1b[?1049h\x1b[?25l")
        sys.stdout.flush()
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
