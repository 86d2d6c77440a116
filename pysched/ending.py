"""That a node is to end: who may say so, how, and why."""

from __future__ import annotations

import queue
import threading

from pysched.errors import NodeError


class Ending:
    """Told by signals, by stages and by threads that died; waited for by the main thread.

    ::

        goes on ──drain──► wanted ──drain again──► at once
           │ └──hand_over──► wanted, leaving: jobs go on in the next incarnation
           └──fail──► wanted, with a failure; abort: at once, too
    """

    def __init__(self) -> None:
        # A signal handler runs in the middle of whatever the main thread does, perhaps inside the lock of the very
        # Event it would set.  SimpleQueue.put may be called there; a thread of its own turns the wishes into events.
        self._wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.wanted = threading.Event()
        self.at_once = threading.Event()  # without waiting for running jobs
        self.leaving = False  # running jobs stay, for the next incarnation
        self.failure: NodeError | None = None

    def listen(self) -> None:
        """From now on wishes become events."""
        threading.Thread(target=self._heed, name="signals", daemon=True).start()

    def drain(self) -> None:
        """Claim no more, let running jobs end, then stop; the second call stops at once.  For signal handlers, too."""
        self._wishes.put(False)

    def hand_over(self) -> None:
        """Claim no more, then stop, and leave running jobs to the guard and the next incarnation.  For signal handlers,
        too."""
        self._wishes.put(True)

    def _heed(self) -> None:
        while True:
            leave = self._wishes.get()
            if self.wanted.is_set():
                if not leave:
                    self.at_once.set()
            else:
                self.leaving = leave
                self.wanted.set()

    def fail(self, failure: NodeError) -> None:
        """Running jobs end first; the first failure is the one that is told."""
        self.failure = self.failure or failure
        self.wanted.set()

    def abort(self, failure: NodeError) -> None:
        """As `fail`, at once."""
        self.at_once.set()
        self.fail(failure)
