"""The thread that hears the store's notifications: hints that make the next poll early, nothing more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import structlog

from pysched.errors import StoreError
from pysched.model import LISTENING

_PATIENCE_S = 60.0  # nothing depends on it: what comes ends the wait, and so does the end of the connection
_RECONNECT_S = 1.0


class Listener:
    """Calls `on[payload]()` for each notification; `notifications(timeout_s)` yields payloads, then ends; `hush()` ends
    its wait.

    Where nothing could be heard, anything may have been said: when hearing begins (`LISTENING`), and while there is no
    connection at each try to get one, that counts as news of everything.
    """

    def __init__(
        self,
        notifications: Callable[[float], Iterator[str]],
        hush: Callable[[], None],
        on: Mapping[str, Callable[[], None]],
    ) -> None:
        self._notifications = notifications
        self._hush = hush
        self._on = on
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self._log = structlog.get_logger("listener")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._hush()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for payload in self._notifications(_PATIENCE_S):
                    if payload in self._on:
                        self._on[payload]()
                    elif payload == LISTENING:
                        self._tell_all()
                    if self._stop.is_set():
                        return
            except StoreError as error:
                self._log.debug("no notifications, polling only", error=str(error))
                if not self._stop.wait(_RECONNECT_S):
                    self._tell_all()

    def _tell_all(self) -> None:
        try:
            for handler in self._on.values():
                handler()
        except StoreError:
            pass  # the next try comes soon
