"""The thread that tells the store now and then what this node has measured, for /metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from pysched.errors import StoreError

PERIOD_S = 5.0
REPEAT_S = 3_600.0  # of what has not changed: the store forgets what is a day old


class Publisher:
    """Calls `publish()` every few seconds, and a last time when it stops; not while `counts()` stays the same, since
    then it would say the same again."""

    def __init__(
        self, counts: Callable[[], object], publish: Callable[[], None], *, period_s: float = PERIOD_S
    ) -> None:
        self._counts = counts
        self._publish = publish
        self._period_s = period_s
        self._published: object = None  # the counts then
        self._published_s = 0.0  # monotonic
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
            stopping = self._stop.wait(self._period_s)
            now, counts = time.monotonic(), self._counts()  # before what is published, which may be newer
            if counts == self._published and now - self._published_s < REPEAT_S:
                continue
            try:
                self._publish()
            except StoreError as error:
                self._log.debug("measures not published, the store does not answer", error=str(error))
            else:
                self._published, self._published_s = counts, now
