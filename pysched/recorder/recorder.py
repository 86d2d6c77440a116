"""Two threads that make outcomes durable, each taking whatever arrived while it wrote the batch before (rule 11).

::

    reaper ─► inbox ─► [recorder] start, finish, COMMIT ─► records ─► [deliverer] .done, fsync ─► store.delivered

What a crash leaves: before the commit, an attempt that recovery finds as abandoned; between the commit
and `.done`, an undelivered row that the next incarnation of this home (or, for a task that never ran,
any node) delivers; between `.done` and `delivered`, a file that is written again with the same content.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from pysched.errors import StoreError
from pysched.model import AttemptKey, Outcome, Record, Started

_PAUSE_S = (0.05, 2.0)  # first and longest pause while the store or the disk does not take it
_SWEEP_S = 2.0  # look for undelivered records that others left
_BATCH = 1_000
_GATHER_S = 0.02  # between the beginnings of two batches: a transaction costs as much as ten tasks in it

Start = Callable[[Sequence[Started]], Sequence[AttemptKey]]
Finish = Callable[[Sequence[Outcome]], "tuple[Sequence[Record], Sequence[AttemptKey]]"]


class Inbox:
    """Started attempts and outcomes on their way to the store."""

    def __init__(self) -> None:
        self.started: list[Started] = []
        self.outcomes: list[Outcome] = []

    def __bool__(self) -> bool:
        return bool(self.started or self.outcomes)


class Recorder:
    """`finished(outcomes)` hears of every recorded outcome, `disowned(keys)` of attempts this node lost."""

    def __init__(
        self,
        *,
        start: Start,
        finish: Finish,
        deliver: Callable[[Sequence[Record]], None],
        finished: Callable[[Sequence[Outcome]], None],
        disowned: Callable[[Iterable[AttemptKey]], None],
    ) -> None:
        self._start = start
        self._finish = finish
        self._deliver = deliver
        self._finished = finished
        self._disowned = disowned
        self._inbox = Inbox()
        self._arrived = threading.Condition()
        self._stopping = False
        self._began_s = 0.0  # the batch before, by the monotonic clock
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._log = structlog.get_logger("recorder")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Record what has arrived, then end."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self._thread.join()

    def put(self, started: Sequence[Started], outcomes: Sequence[Outcome]) -> None:
        with self._arrived:
            self._inbox.started += started
            self._inbox.outcomes += outcomes
            self._arrived.notify()

    def _run(self) -> None:
        while batch := self._take():
            self._until_done(batch)

    def _take(self) -> Inbox | None:
        """All that has arrived; None when stopping and there is nothing left."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._inbox or self._stopping)
            self._arrived.wait_for(lambda: self._stopping, self._began_s + _GATHER_S - time.monotonic())
            self._began_s = time.monotonic()
            batch, self._inbox = self._inbox, Inbox()
            return batch or None

    def _until_done(self, batch: Inbox) -> None:
        """Write `batch`; while the store does not answer, hold it and try again.

        A stopping node gives up after the longest pause: its attempts are then found as abandoned and run again.
        """
        pause = _PAUSE_S[0]
        while True:
            try:
                self._write(batch)
            except StoreError as error:
                if pause == _PAUSE_S[0]:
                    self._log.warning(
                        "the store does not answer, results wait", error=str(error), waiting=len(batch.outcomes)
                    )
                with self._arrived:
                    stopping = self._arrived.wait_for(lambda: self._stopping, pause)
                if stopping and pause == _PAUSE_S[1]:
                    self._log.error("results are dropped, their attempts will run again", results=len(batch.outcomes))
                    return
                if stopping:
                    time.sleep(pause)  # the wait above returns at once now
                pause = min(pause * 2, _PAUSE_S[1])
            else:
                return

    def _write(self, batch: Inbox) -> None:
        ended = {outcome.key for outcome in batch.outcomes}
        # An attempt that has ended already needs no row version that says "running".
        still_running = [started for started in batch.started if started.key not in ended]
        if still_running:
            lost = self._start(still_running)
            batch.started.clear()
            if lost:
                self._log.warning("attempts are no longer this node's", tasks=[key.id for key in lost])
                self._disowned(lost)
        if batch.outcomes:
            records, disowned = self._finish(batch.outcomes)
            for key in disowned:
                self._log.warning(
                    "result dropped, the attempt is no longer this node's", task=key.id, attempt=key.attempt
                )
            gone = set(disowned)
            self._finished([outcome for outcome in batch.outcomes if outcome.key not in gone])
            self._deliver(records)


class Deliverer:
    """Writes `.done` files for records as they come, and for those that the store says are undelivered."""

    def __init__(
        self,
        *,
        write: Callable[[Sequence[Record]], None],
        undelivered: Callable[[int], Sequence[Record]],
        delivered: Callable[[Sequence[Record]], None],
    ) -> None:
        self._write = write
        self._undelivered = undelivered
        self._delivered = delivered
        self._waiting: list[Record] = []
        self.out_of_space = False  # the last batch found no room; read by others
        self._arrived = threading.Condition()
        self._stopping = False
        self._began_s = 0.0
        self._thread = threading.Thread(target=self._run, name="deliverer", daemon=True)
        self._log = structlog.get_logger("deliverer")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Deliver what has arrived, look once more into the store, then end."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self._thread.join()

    def put(self, records: Sequence[Record]) -> None:
        with self._arrived:
            self._waiting += records
            self._arrived.notify()

    def _run(self) -> None:
        pause = _PAUSE_S[0]
        last_try = False
        while True:
            batch = self._take()
            if not batch and self._stopping:
                if last_try:
                    return
                last_try = True
            try:
                # Nothing came for a while: look for what others left (a crash, a cancelled task that never ran).
                self._settle(batch or self._undelivered(_BATCH))
                pause = _PAUSE_S[0]
                self.out_of_space = False
            except (OSError, StoreError) as error:
                # Not lost: the store still lists them as undelivered.
                self.out_of_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                if pause == _PAUSE_S[0]:
                    self._log.error(".done files wait", error=str(error), waiting=len(batch))
                with self._arrived:
                    self._arrived.wait_for(lambda: self._stopping, pause)
                pause = min(pause * 2, _PAUSE_S[1])

    def _take(self) -> list[Record]:
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or self._stopping, _SWEEP_S)
            self._arrived.wait_for(lambda: self._stopping, self._began_s + _GATHER_S - time.monotonic())
            self._began_s = time.monotonic()
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            return batch

    def _settle(self, records: Sequence[Record]) -> None:
        if records:
            self._write(records)
            self._delivered(records)
