"""The thread that ends attempts of nodes that are gone.  Apart from the heartbeat, since a sweep may take long."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from pysched.engine.lease import RENEW_S
from pysched.errors import StoreError


class Sweeper:
    """`sweep()` records what became of some abandoned attempts, and returns how many; asked again until there are none.

    A sweep that is cut short leaves the attempts that it has not recorded as they were, for the next one of any node.
    """

    def __init__(self, sweep: Callable[[], int]) -> None:
        self._sweep = sweep
        self._wanted = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._log = structlog.get_logger("sweeper")

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be something now."""
        self._wanted.set()

    def stop(self) -> None:
        self._stopping = True
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            try:
                while not self._stopping and self._sweep():
                    pass
            except StoreError as error:
                self._log.debug("no sweep, the store does not answer", error=str(error))
            self._wanted.wait(RENEW_S)
            self._wanted.clear()
