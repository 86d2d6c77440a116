"""How much waits in the store, for a look each second that costs nothing while nothing waits.

::

    asked: something waits ──────────────────────────────────► ask each time
    asked: nothing waits  ── nobody has told of any change ──► the same answer, for POLL_S at most
                          └─ a notification, or none can be heard ──► ask

Every way into the queue is told of (`store.notifications`), so what was empty stays so until then.  As all news, these
are hints: one that is lost makes an answer `POLL_S` old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pysched.model import Priority

POLL_S = 5.0

Found = tuple[Mapping[Priority, int], int]  # queued by priority, ever submitted


class Depths:
    """`ask()` asks the store; one thread looks, any thread may tell of `news`."""

    def __init__(self, ask: Callable[[], Found]) -> None:
        self._ask = ask
        self._empty: Found | None = None  # the last answer, if nothing waited
        self._asked_s = 0.0  # monotonic
        self._news = True

    def news(self) -> None:
        """Something may have come into the queue."""
        self._news = True

    def look(self) -> Found:
        now = time.monotonic()
        if self._empty is not None and not self._news and now - self._asked_s < POLL_S:
            return self._empty
        self._news = False  # before asking: what comes from now on must count
        self._empty = None
        found = self._ask()
        self._asked_s = now
        if not any(found[0].values()):
            self._empty = found
        return found
