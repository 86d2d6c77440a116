"""How much of what tasks ask for this node may claim.

The truth about what is held is the core's (`csrc/admission.pyx`): whatever is claimed, no attempt starts before it
fits.  Here is decided how many claimed ones may wait for that::

    long attempts    none: what does not fit now stays in the store, where another node may take it.  The exception is
                     one that has waited for a while: with it claimed, the core keeps room for it
    short attempts   as many as will start within two claims' time, as with workers
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pysched import policy
from pysched._core import Core
from pysched.engine.attempts import Attempts
from pysched.engine.dispatcher import StartRate
from pysched.resources import Demand, Room

RESERVE_AFTER_S = 2.0  # so long another node that has room comes first


class Rooms:
    """For one thread.  `alone()`: whether there was no other node at the last heartbeat."""

    def __init__(self, core: Core, attempts: Attempts, capacity: Demand, alone: Callable[[], bool]) -> None:
        self._core = core
        self._attempts = attempts
        self._capacity = capacity
        self._alone = alone
        self._rate = StartRate()

    def look(self) -> Room:
        cpus, memory, gpus, waiting = self._core.resources()
        ends_per_s = self._rate.per_second(self._attempts.released, time.monotonic())
        alone = self._alone()
        ahead = policy.prefetch(ends_per_s, alone=alone)
        reserves = None if waiting else 0.0 if alone else RESERVE_AFTER_S
        return Room(
            capacity=self._capacity,
            free=Demand(cpus, memory, gpus),
            ahead=max(0, ahead - waiting),
            again_after=max(1, ahead // 2),
            reserve_after_s=reserves,
        )
