"""The thread that tells the store now and then what this node has measured, for /metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from pysched.errors import StoreError

PERIOD_S = 5.0


class Publisher:
    """Calls `publish()` every few seconds, and a last time when it stops."""

    def __init__(self, publish: Callable[[], None]) -> None:
        self._publish = publish
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._log = structlog.get_logger("publisher")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(PERIOD_S)
            try:
                self._publish()
            except StoreError as error:
                self._log.debug("measures not published, the store does not answer", error=str(error))
