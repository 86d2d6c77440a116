"""One life of a node, from the lock of its home to its exit code."""

from __future__ import annotations

import gc
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

from pysched import delegation
from pysched.delegation import NotDelegated
from pysched.ending import Ending
from pysched.errors import HomeInUse, NodeDefect
from pysched.guard import HANDED_OVER, Link
from pysched.home import Home
from pysched.node import Node
from pysched.settings import Settings
from pysched.store.embedded import EmbeddedServer
from pysched.store.opening import opened
from pysched.store.store import Store

_THRESHOLDS = (50_000, 20, 20)  # of the garbage collector: that many new objects, and so many rounds of the one before
_HOME_LOOK_S = 0.5  # whether a node that had the home is gone


class Incarnation:
    """`run` returns when it has ended; `drain` and `hand_over` may be called from a signal handler."""

    def __init__(self, settings: Settings, guard: Link) -> None:
        self._settings = settings
        self._guard = guard
        self._home = Home(settings.home)
        self._id = uuid.uuid4()
        self._ending = Ending()
        self.drain = self._ending.drain
        self.hand_over = self._ending.hand_over
        self._log = structlog.get_logger("node").bind(node=str(self._id)[:8])

    def run(self) -> int:
        """Until `drain` or `hand_over`; returns the exit code, raises `PyschedError` if the node cannot start or cannot
        go on."""
        ending = self._ending
        ending.listen()
        self._home.prepare()
        with ExitStack() as stack:
            if self._own_home(stack):
                url = stack.enter_context(database(self._settings, keep=lambda: ending.leaving))
                store = stack.enter_context(opened(url, ending.wanted.wait))
                if store is not None:
                    self._serve(store)
        if ending.failure is not None:
            raise ending.failure
        return HANDED_OVER if ending.leaving else 0

    def _own_home(self, stack: ExitStack) -> bool:
        """Hold the home within `stack`; False if told to stop before.

        Our guard has it, so a node that has it, too, has lost its own, and drains: only its jobs' parent can tell how
        they end, so they are waited for.
        """
        said = ""
        while True:
            try:
                stack.enter_context(self._home.owned())
            except HomeInUse as error:
                if said != error.owner:
                    said = error.owner
                    self._log.warning(
                        f"waiting for {said}, whose guard is gone: its jobs end first; TERM hands them back"
                    )
            else:
                return True
            if self._ending.wanted.wait(_HOME_LOOK_S):
                return False

    def _serve(self, store: Store) -> None:
        with self._leaves() as cgroups, self._crashes_stop_us():
            node = Node(self._settings, self._guard, self._home, store, self._ending, self._id, *cgroups)
            node.start()
            _collect_seldom()
            self._ending.wanted.wait()
            if self._ending.leaving:
                node.leave()
            else:
                node.stop()

    @contextmanager
    def _leaves(self) -> Iterator[tuple[Path | None, Path | None]]:
        """The cgroups for those of attempts, and of attempts with a limit of memory; None: trees are looked for, memory
        is watched, which `scheduler doctor` explains."""
        name = str(self._home.identity())
        places: list[Path | None] = [None, None]
        with ExitStack() as stack:
            if self._settings.cgroup == "auto":
                try:
                    places[0] = stack.enter_context(delegation.folder(name))
                    places[1] = stack.enter_context(delegation.limited_folder(name))
                except NotDelegated as error:
                    what = "cgroups for attempts" if places[0] is None else "limits of memory by cgroups"
                    self._log.debug(f"no {what}", reason=str(error))
            yield places[0], places[1]

    @contextmanager
    def _crashes_stop_us(self) -> Iterator[None]:
        """A thread that dies of a defect takes the node down in the open instead of leaving it half alive."""
        before = threading.excepthook

        def hook(crash: threading.ExceptHookArgs) -> None:
            thread = crash.thread.name if crash.thread is not None else "?"
            self._log.error("a thread died, stopping", thread=thread, exc_info=crash.exc_value)
            what = f"{crash.exc_type.__name__}: {crash.exc_value}"
            self._ending.abort(NodeDefect(f"thread {thread} died of {what}; this is a defect of pysched"))

        threading.excepthook = hook
        try:
            yield
        finally:
            threading.excepthook = before


def _collect_seldom() -> None:
    """Next to nothing that a node makes for a task is part of a cycle, and thousands of such objects live at a time: to
    look for cycles among them as often as the interpreter does by itself is a fifteenth of its time."""
    gc.collect()
    gc.freeze()  # what is there by now stays
    gc.set_threshold(*_THRESHOLDS)


@contextmanager
def database(settings: Settings, *, keep: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """The URL of the store: the one in the settings, or of the embedded server, kept running meanwhile; and after, if
    `keep` says so then."""
    if settings.database is not None:
        yield settings.database
    else:
        with EmbeddedServer(settings.home).running(keep=keep) as url:
            yield url
