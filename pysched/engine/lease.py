"""What a node may still believe of its lease: pure, by its own CLOCK_BOOTTIME, from when its requests were sent.

::

                 renewed                            a renewal failed
    ┌─ SURE ◄────────────────────────────────┬─────────────────────► DOUBTFUL: claim nothing, what runs goes on
    │   │                                    │                          │  │
    │   └── the store says: ended ───────────│──────────────────────────│──┤
    │                                        │ renewed                  │  │ `until` has come
    │                                        └──────────────────────────┘  ▼
    └─────── renewed or revived, and nothing is held any more ◄───────── FENCED: end all that is held, at once

`until` is a lease after the last renewal that succeeded was sent, or, where a refusal can be trusted, after the last
request to which the server said that it is down.  Why that is enough: nobody ends another node unless its own renewals
have succeeded over one connection for a whole lease (`may_judge`), and no connection outlives a server that is down.
So whoever is told at t that it is down knows that nobody takes its attempts before t + lease.  Silence proves nothing:
the server may serve everybody else.
"""

from __future__ import annotations

from dataclasses import dataclass

LEASE_S = 10.0
RENEW_S = LEASE_S / 4
RETRY_S = 0.5  # while renewals fail: work resumes soon after the server does
KILL_S = 2.5  # before the end of the lease: what it takes to end all that runs


@dataclass(slots=True)
class Lease:
    """Times are seconds of one clock that goes on while the machine sleeps."""

    until: float  # others may take our attempts from here on
    sure: bool = True
    fenced: bool = False
    others: bool = True  # whether other nodes may have lived at the last renewal
    _renewed: float | None = None  # when the last renewal was answered, if nothing has failed since
    _watching: float = 0.0  # since when each renewal has succeeded in time

    def renewed(self, *, sent: float, now: float, others: bool) -> None:
        if self._renewed is None or now - self._renewed > 2 * RENEW_S:
            self._watching = now
        self._renewed = now
        self.others = others
        self.until = max(self.until, sent + LEASE_S)
        self.sure = not self.fenced

    def failed(self, *, sent: float, down: bool) -> None:
        """A renewal had no success; `down`: the server itself said that it serves nobody."""
        self._renewed = None
        self.sure = False
        if down and not self.fenced:
            self.until = max(self.until, sent + LEASE_S)

    def fence(self) -> None:
        self.fenced = True
        self.sure = False

    def lift(self) -> None:
        """All that was held is gone, and the lease is valid again."""
        self.fenced = False
        self.sure = True

    @property
    def ends_at(self) -> float:
        """When all that is held has to end, unless it is renewed."""
        return self.until - KILL_S

    def must_end(self, now: float) -> bool:
        """Whether all that is held has to end now."""
        return not self.fenced and now >= self.ends_at

    def may_judge(self, now: float) -> bool:
        """Whether other nodes that have not renewed for a lease may be taken for dead."""
        return self.sure and self._renewed is not None and now - self._watching >= LEASE_S
