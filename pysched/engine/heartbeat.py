"""Two threads that keep the lease: one renews it, the other ends what is held when that does not succeed in time.

They are two since a renewal may wait for its answer; both wait for nothing else, so neither a slow pool nor a long
claim, a busy recorder or a sweep holds them up.  What each state means is drawn in `lease`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from pysched.engine.alarm import Alarm
from pysched.engine.lease import LEASE_S, RENEW_S, RETRY_S, Lease
from pysched.errors import DatabaseDown, DatabaseReadOnly, StoreError

_AGAIN_S = 1.0  # between two calls of `fence`


class Others(Protocol):
    """The other nodes, as the store counts them."""

    @property
    def living(self) -> int: ...

    @property
    def expired(self) -> int: ...  # of those: let their lease run out


class Heartbeat:
    """`renew()` tells of the other nodes, or gives None once the store counts this one as ended; `revive()` begins
    anew after that; `judge()` ends nodes that let their lease run out.

    `fence()` ends all that is held, and is called again each second until `idle()`, since what was on its way into the
    core comes after the first call.  `doubted()`: a renewal has failed; `resumed()`: the lease is sure again.
    `trusts(alone)`: whether a server that says it is down (or read-only) is so for all, `alone` if no other node was
    there.
    """

    def __init__(
        self,
        *,
        renew: Callable[[], Others | None],
        revive: Callable[[], None],
        judge: Callable[[], int],
        judged: Callable[[], None],
        fence: Callable[[], None],
        idle: Callable[[], bool],
        doubted: Callable[[], None],
        resumed: Callable[[], None],
        trusts: Callable[[bool], bool],
    ) -> None:
        self._renew = renew
        self._revive = revive
        self._judge = judge
        self._judged = judged
        self._fence = fence
        self._idle = idle
        self._doubted = doubted
        self._resumed = resumed
        self._trusts = trusts
        self._guard = threading.Lock()  # of the lease; held for no call out of here
        self._lease = Lease(until=_now() + LEASE_S)
        self._stop = threading.Event()
        self._alarm = Alarm()  # of the fence
        self._threads = [
            threading.Thread(target=self._keep, name="heartbeat", daemon=True),
            threading.Thread(target=self._watch, name="fence", daemon=True),
        ]
        self._log = structlog.get_logger("heartbeat")

    def start(self, *, registered: float) -> None:
        """`registered`: by `now`, when the request that began the lease was sent."""
        self._lease.until = registered + LEASE_S
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._alarm.ring()
        for thread in self._threads:
            thread.join()
        self._alarm.close()

    @staticmethod
    def now() -> float:
        return _now()

    @property
    def sure(self) -> bool:
        """Whether the node may claim."""
        return self._lease.sure

    @property
    def fenced(self) -> bool:
        """Whether all that is held has to end."""
        return self._lease.fenced

    @property
    def alone(self) -> bool:
        """Whether no other node was there at the last renewal."""
        return not self._lease.others

    # ── renewing ──────────────────────────────────────────────────────────────────────────────────

    def _keep(self) -> None:
        pause = RENEW_S
        while not self._stop.wait(pause):
            pause = RENEW_S if self._beat() else RETRY_S

    def _beat(self) -> bool:
        """One renewal and what follows from it; whether all is well."""
        sent = _now()
        try:
            others = self._renew()
            if others is None:
                return self._begin_anew()
            with self._guard:
                was_sure = self._lease.sure
                self._lease.renewed(sent=sent, now=_now(), others=others.living > 0)
                fenced, may_judge = self._lease.fenced, self._lease.may_judge(_now())
            if fenced:
                return self._lift()
            if not was_sure:
                self._log.info("the lease is renewed again")
                self._resumed()
            if may_judge and others.expired and self._judge():
                self._judged()
        except StoreError as error:
            self._doubt(sent, error)
            return False
        return True

    def _begin_anew(self) -> bool:
        """The store counts this node as ended: others may run its attempts already."""
        with self._guard:
            was_fenced = self._lease.fenced
            self._lease.fence()
        if not was_fenced:
            self._log.error("the lease is lost, another node has taken over: ending all jobs, then beginning anew")
            self._fence()
            self._alarm.ring()
        if not self._idle():
            return False
        sent = _now()
        self._revive()
        with self._guard:
            self._lease.renewed(sent=sent, now=_now(), others=True)
        return self._lift()

    def _lift(self) -> bool:
        if not self._idle():
            return False
        with self._guard:
            self._lease.lift()
        self._log.info("the lease is valid again")
        self._resumed()
        return True

    def _doubt(self, sent: float, error: StoreError) -> None:
        # One that takes no writes lets nobody judge either.
        down = isinstance(error, DatabaseDown | DatabaseReadOnly) and self._trusts(not self._lease.others)
        with self._guard:
            was_sure = self._lease.sure
            self._lease.failed(sent=sent, down=down)
        if was_sure:
            self._log.warning("the lease is not renewed, claims wait", error=str(error))
            self._doubted()

    # ── the fence ─────────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        while not self._stop.is_set():
            with self._guard:
                due = self._lease.must_end(_now())
                if due:
                    self._lease.fence()
                fenced, ends_at = self._lease.fenced, self._lease.ends_at
            if due:
                self._log.error("the lease could not be renewed: ending all jobs before others may run them")
            if fenced and not self._idle():
                self._fence()
            self._alarm.wait(_now() + _AGAIN_S if fenced else ends_at)


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
