"""What a node does beside its lease, each time that is renewed: heed what the store says of it, sweep, and prune.

::

    standing ─┬ fine ────────► sweep what other nodes abandoned, prune a batch, deliver what others left undelivered
              ├ draining ────► hand back what waits here; what runs goes on (claims are refused by the store)
              └ superseded ──► the same, for good: a newer pysched has changed the schema; the node ends

All of it may be done at any time, twice, or by several nodes at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

PRUNE_BATCH = 1_000
PRUNE_REST_S = 600.0  # between two passes over what is old enough


class Standing(Protocol):
    """How a node stands in the store."""

    @property
    def draining(self) -> bool: ...

    @property
    def superseded(self) -> str | None: ...  # why this version may not work on

    @property
    def abandoned(self) -> bool: ...  # whether there is something to sweep

    @property
    def undelivered(self) -> bool: ...  # whether there is something to deliver


class Pruned(Protocol):
    """What one batch of pruning did; `next` None: the pass is over."""

    @property
    def tasks(self) -> int: ...

    @property
    def logs(self) -> Sequence[str]: ...

    @property
    def next(self) -> int | None: ...


class Upkeep:
    """`hand_back()` withdraws what waits on this node; `superseded(why)` hears of it once, and should end the node.

    `prune(after, limit)` is None if tasks are kept for ever.
    """

    def __init__(
        self,
        *,
        standing: Callable[[], Standing],
        hand_back: Callable[[], int],
        superseded: Callable[[str], None],
        sweep: Callable[[], int],
        deliver: Callable[[], None],
        prune: Callable[[int, int], Pruned] | None,
        logs: Path,
        remove_log: Callable[[str], None],
    ) -> None:
        self._standing = standing
        self._hand_back = hand_back
        self._superseded = superseded
        self._sweep = sweep
        self._deliver = deliver
        self._prune = prune
        self._logs = f"{logs}/"
        self._remove_log = remove_log
        self._draining = False
        self._ending = False
        self._next = 0  # where the pass goes on
        self._rest_until_s = 0.0  # by the monotonic clock
        self._log = structlog.get_logger("upkeep")

    def round(self) -> int:
        """Everything once; how many attempts of other nodes were ended."""
        standing = self._stand()
        if standing.undelivered and not self._ending:
            self._deliver()
        swept = self._sweep() if standing.abandoned and not self._ending else 0
        if self._prune is not None and not self._ending and time.monotonic() >= self._rest_until_s:
            self._prune_some(self._prune)
        return swept

    def heed(self) -> None:
        """Do what the store asks of this node."""
        self._stand()

    def _stand(self) -> Standing:
        standing = self._standing()
        if standing.superseded is not None and not self._ending:
            self._ending = True
            self._log.error("this version may not work on", reason=standing.superseded)
            self._superseded(standing.superseded)
        if standing.draining and not self._draining:
            self._draining = True
            self._log.info("draining: running jobs go on, what waits is handed back, nothing more is claimed")
        if standing.draining or self._ending:
            self._hand_back()  # again each time: a claim may have been on its way
        return standing

    def _prune_some(self, prune: Callable[[int, int], Pruned]) -> None:
        pruned = prune(self._next, PRUNE_BATCH)
        for path in pruned.logs:
            if path.startswith(self._logs):  # another home's are not ours to remove
                self._remove_log(path)
        if pruned.next is None:
            self._next, self._rest_until_s = 0, time.monotonic() + PRUNE_REST_S
        else:
            self._next = pruned.next
        if pruned.tasks:
            self._log.info("removed tasks that ended long ago", tasks=pruned.tasks)
