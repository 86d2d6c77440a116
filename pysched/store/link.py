"""One connection to PostgreSQL that does not wait for ever for an answer that will not come.

A statement may take long, so time alone proves nothing, and a kernel that still acknowledges what is sent (a proxy, a
hanging server) hides a dead peer from the keepalives.  So whoever waits looks up::

    waiting ─ silence ≥ 2 s ─► ask over another connection what the server does for us
       ▲                         ├ it works              ─► go on waiting
       └─────────────────────────┤ it does not answer    ─► lost
                                 └ it waits for us, at three looks in a row (nothing is just on its way) ─► lost

A link with `limit_s` asks nobody: a silence of that length is its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from enum import Enum
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen

RV = TypeVar("RV")

SILENCE_S = 2.0  # from here on, look whether the server still works for us
_BETWEEN_LOOKS_S = 0.5
_IDLE_LOOKS = 3
_TICK_S = 0.1

# Without a handler of the application's own, the driver's warnings would go to the terminal as well as our errors.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


class Look(Enum):
    """What the server does for a connection."""

    WORKS = "it is at our statement"
    WAITS = "it has nothing to do for us"
    SILENT = "it does not answer"
    UNKNOWN = "it tells nothing"  # as one that has no connection left


class Link(psycopg.Connection[tuple[Any, ...]]):
    """A connection; `limit_s` or `look` is set once it stands."""

    limit_s: float | None = None
    look: Callable[[int], Look] | None = None  # by the process id of the server's side
    server_pid = 0

    def wait(self, gen: PQGen[RV], interval: float = _TICK_S, timeout: float | None = None) -> RV:
        """As the driver's, which calls this whenever a result is not there yet."""
        # The driver has learnt the last parameter in version 3.3.
        given = {} if timeout is None else {"timeout": timeout}
        return super().wait(self._impatient(gen), interval, **given)

    def _impatient(self, gen: PQGen[RV]) -> Generator[Any, Any, RV]:
        """`gen`, with a look at the clock each time nothing has come."""
        heard = looked = time.monotonic()
        idle_looks = 0
        try:
            state = next(gen)
            while True:
                ready = yield state
                now = time.monotonic()
                if ready & 1:  # readable: the server has said something
                    heard, idle_looks = now, 0
                elif self.limit_s is not None:
                    if now - heard >= self.limit_s:
                        self._lost(f"no answer within {self.limit_s:g} s")
                elif self.look is not None and now - heard >= SILENCE_S and now - looked >= _BETWEEN_LOOKS_S:
                    seen = self.look(self.server_pid)
                    looked = time.monotonic()
                    idle_looks = idle_looks + 1 if seen is Look.WAITS else 0
                    if seen is Look.SILENT or idle_looks == _IDLE_LOOKS:
                        self._lost(f"no answer for {looked - heard:.0f} s, and {seen.value}")
                state = gen.send(ready)
        except StopIteration as stop:
            result: RV = stop.value
            return result

    def _lost(self, why: str) -> None:
        self.close()
        raise psycopg.OperationalError(why)
