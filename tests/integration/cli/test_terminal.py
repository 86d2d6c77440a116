"""Commands as processes: on a terminal, into a pipe that closes, under ^C."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator

from pysched.model import new_id
from pysched.selection import Selection
from pysched.task import parse_task
from tests.integration.api.conftest import Api

# Whoever runs the tests in the background hands down that SIGINT is ignored; a shell in which people type does not.
_AS_TYPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "pysched.cli", *sys.argv[1:]])
"""
SCHEDULER = [sys.executable, "-c", _AS_TYPED]
PATIENCE_S = 60.0


class Terminal:
    """A pseudo-terminal with `scheduler …` on it."""

    def __init__(self, *words: str) -> None:
        self._own, theirs = pty.openpty()
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.modes = termios.tcgetattr(theirs)
        self._theirs = theirs
        # Else these would count instead of this terminal's size; those who run tests in parallel set them.
        unsized = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [*SCHEDULER, *words], stdin=theirs, stdout=theirs, stderr=theirs,
            env={**unsized, "TERM": "xterm-256color"}, start_new_session=True,
        )  # fmt: skip
        self.seen = b""

    def wait_for(self, text: str) -> None:
        """Read until it has been written since the last key."""
        deadline = time.monotonic() + PATIENCE_S
        while text.encode() not in self.seen:
            assert time.monotonic() < deadline, (text, self.seen)
            self._read()

    def _read(self) -> bool:
        """Whether there was something."""
        data = b""
        if select.select([self._own], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                data = os.read(self._own, 65_536)
        self.seen += data
        return bool(data)

    def press(self, keys: str) -> None:
        self.seen = b""
        os.write(self._own, keys.encode())

    def ended(self) -> int:
        """Its exit code; the terminal is as it was before."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self._read()  # else it could not write any more
        while select.select([self._own], [], [], 0)[0] and self._read():
            pass  # what it wrote last may come in pieces
        assert termios.tcgetattr(self._theirs) == self.modes
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)
        os.close(self._theirs)


@contextlib.contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    found = Terminal(*words)
    try:
        yield found
    finally:
        found.close()


def test_a_watched_listing_fits_the_terminal(api: Api) -> None:
    tag = f"t{uuid.uuid4().hex}"
    for number in range(30):
        api.submit(name=f"row {number}", tags=[tag])
    with terminal("ls", "--watch", f"tag={tag}", "-c", "row,name") as screen:
        screen.wait_for("and more\r\n")
        _, _, picture = screen.seen.decode().partition("ROW")
        shown = picture.partition("and more")[0].splitlines()[1:]
        assert [line.split()[-1] for line in shown] == [str(number) for number in range(29, 8, -1)]  # 21 of 24 lines
        api.submit(name="row news", tags=[tag])
        screen.wait_for("news")
        screen.process.send_signal(signal.SIGINT)
        assert screen.ended() == 130, screen.seen
    api.store.cancel_many(Selection(tags=(tag,)), limit=100)  # others want to see nothing wait


def test_top_from_beginning_to_end(api: Api) -> None:
    task_id = api.submit(name="the task to look at")
    with terminal("top", "-i", "0.1s") as screen:
        screen.wait_for("[running]")
        screen.press("\t")
        screen.wait_for("the task to look at")
        screen.press("c")
        screen.wait_for("cancel ")
        screen.press("y")
        screen.wait_for("is cancelled now")
        screen.press("p")
        screen.wait_for("PAUSED")
        screen.press("p")
        screen.wait_for("nothing here")
        screen.press("\t\t")  # failed, all
        screen.wait_for("cancelled")
        screen.press("\r")
        screen.wait_for("stdout of ")
        screen.press("\x1b")
        screen.wait_for("↑↓ choose")
        screen.press("q")
        assert screen.ended() == 0
        assert screen.seen.endswith(b"\x1b[?25h\x1b[?1049l")
    assert api.store.get(task_id)["status"] == "cancelled"
    assert api.store.stats()["paused"] is False


def test_top_gives_the_terminal_back_after_an_interrupt(api: Api) -> None:
    with terminal("top") as screen:
        screen.wait_for("q quit")
        screen.process.send_signal(signal.SIGINT)
        assert screen.ended() == 130, screen.seen
        assert screen.seen.endswith(b"\x1b[?25h\x1b[?1049l")


def test_a_table_fits_its_terminal_and_has_colours(api: Api) -> None:
    api.submit(name="n" * 200)
    with terminal("ls", "-n", "1") as screen:
        assert screen.ended() == 0
        assert b"\x1b[34mqueued\x1b[0m" in screen.seen
        assert b"nn\xe2\x80\xa6" in screen.seen  # cut
        assert "…".encode() in screen.seen
    environ = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [*SCHEDULER, "ls", "-n", "1"], env=environ, capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert b"\x1b" not in done.stdout
    assert b"n" * 200 in done.stdout


def test_waiting_shows_a_bar_and_an_interrupt_is_quiet(api: Api) -> None:
    task_id = api.submit()
    with terminal("wait", task_id) as screen:
        screen.wait_for("0/1")
        screen.process.send_signal(signal.SIGINT)
        assert screen.ended() == 130, screen.seen
        assert b"Traceback" not in screen.seen
        assert b"error" not in screen.seen


def test_an_interrupt_without_a_terminal_says_nothing(api: Api) -> None:
    task_id = api.submit()
    waiting = subprocess.Popen(
        [*SCHEDULER, "logs", "-f", task_id], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _listens(waiting.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=PATIENCE_S)
    finally:
        if waiting.poll() is None:
            waiting.kill()
            waiting.communicate()
    assert (waiting.returncode, out, err) == (130, b"", b"")


def _listens(pid: int) -> bool:
    """Whether the process has the connection that it follows."""
    with contextlib.suppress(OSError):
        return any(
            os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:") for name in os.listdir(f"/proc/{pid}/fd")
        )
    return False


def test_a_pipe_that_closes_is_no_error(api: Api) -> None:
    tasks = [parse_task({"id": new_id(), "name": "x" * 200}) for _ in range(300)]  # more than a pipe holds unread
    api.store.accept(tasks, source=uuid.uuid4(), atomic=True)
    exporting = subprocess.Popen([*SCHEDULER, "export"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert exporting.stdout is not None
    assert exporting.stderr is not None
    exporting.stdout.close()
    try:
        said = exporting.stderr.read()
        assert (exporting.wait(PATIENCE_S), said) == (141, b"")
    finally:
        exporting.kill()
        exporting.wait()
        exporting.stderr.close()
