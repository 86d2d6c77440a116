"""The thread that keeps this node's lease, and finds work that other nodes abandoned."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from pysched.errors import StoreError

LEASE_S = 10.0
RENEW_S = LEASE_S / 4  # three renewals may fail before the lease ends


class Heartbeat:
    """`renew()` returns False once the store no longer knows this node as alive; `lost()` then hears of it, once.

    `sweep()` ends attempts of nodes whose lease is over, by the database's clock, and returns how many.
    """

    def __init__(self, *, renew: Callable[[], bool], sweep: Callable[[], int], lost: Callable[[], None]) -> None:
        self._renew = renew
        self._sweep = sweep
        self._lost = lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._log = structlog.get_logger("heartbeat")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                if not self._renew():
                    self._lost()
                    return
                swept = self._sweep()
            except StoreError as error:
                self._log.warning("the lease is not renewed, the store does not answer", error=str(error))
            else:
                if swept:
                    self._log.info("took over attempts of nodes that are gone", attempts=swept)
