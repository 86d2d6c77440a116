"""Two threads that make outcomes durable, each taking whatever arrived while it wrote the batch before (rule 11).

::

    reaper ─► inbox ─► [recorder] start, finish, COMMIT ─► records ─► [deliverer] .done, fsync ─► store.delivered
                         │    ▲
                         ▼    │ until the store answers; at a start, what is there comes first
                        spool (a file, fsync)

What a crash leaves: before the commit, an attempt that recovery finds as abandoned, or an outcome in the spool, which
is recorded first; between the commit and `.done`, an undelivered row that the next incarnation of this home (or, for a
task that never ran, any node) delivers; between `.done` and `delivered`, a file that is written again with the same
content.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from pysched._core import PlainEnds
from pysched.errors import NodeError, StoreError
from pysched.model import AttemptKey, Outcome, Record, Started
from pysched.recorder.spool import Spool

_PAUSE_S = (0.05, 2.0)  # first and longest pause while the store or the disk does not take it
_BATCH = 1_000
_FILES = 4_000  # of several batches of plain ends that are written, and synced, together
_FEW = 64  # plain ends that come with other outcomes go with them: a transaction of their own would cost as much
# Between the beginnings of two batches, as a transaction costs as much as ten tasks in it and more; the second while
# attempts wait for a worker here: nothing could start sooner for an end that is recorded sooner.
_GATHER_S = (0.02, 0.25)

Start = Callable[[Sequence[Started]], Sequence[AttemptKey]]
Backlog = Callable[[], bool]  # whether attempts wait for a worker
Finish = Callable[[Sequence[Outcome]], "tuple[Sequence[Record], Sequence[AttemptKey]]"]
FinishPlain = Callable[[PlainEnds], "int | None"]  # the batch of their `.done` files; None: `finish` must look at them


def _gather(arrived: threading.Condition, began_s: float, backlog: Backlog, stopping: Callable[[], bool]) -> None:
    """Let a batch gather, where the one before began at `began_s`; with a backlog ends its longer time, once there is a
    notification."""
    while not stopping() and (left_s := began_s + _GATHER_S[backlog()] - time.monotonic()) > 0:
        arrived.wait(left_s)


class Batch:
    """Started attempts and outcomes on their way to the store."""

    def __init__(self) -> None:
        self.started: list[Started] = []
        self.outcomes: list[Outcome] = []
        self.plain: list[PlainEnds] = []  # each of a poll of the core, not empty
        self.spooled = 0  # so many of the outcomes, from the first, are in the spool

    def __bool__(self) -> bool:
        return bool(self.started or self.outcomes or self.plain)

    def has_ends(self) -> bool:
        return bool(self.outcomes or self.plain)


class Recorder:
    """`finished(outcomes)` hears of every recorded outcome, `disowned(keys)` of attempts this node lost.

    Plain ends are recorded as such by `finish_plain`, unless something comes between: from then on they are `outcomes`.
    While the store does not answer, outcomes are kept in the spool as they come, and in memory.
    """

    def __init__(
        self,
        spool: Spool,
        *,
        start: Start,
        finish: Finish,
        finish_plain: FinishPlain,
        outcomes: Callable[[PlainEnds], Sequence[Outcome]],
        deliver: Callable[[Sequence[Record]], None],
        deliver_plain: Callable[[PlainEnds, int], None],
        finished: Callable[[Sequence[Outcome]], None],
        disowned: Callable[[Iterable[AttemptKey]], None],
        backlog: Backlog,
    ) -> None:
        self._spool = spool
        self._start = start
        self._finish = finish
        self._finish_plain = finish_plain
        self._outcomes = outcomes
        self._deliver = deliver
        self._deliver_plain = deliver_plain
        self._finished = finished
        self._disowned = disowned
        self._backlog = backlog
        self._batch = Batch()  # what the thread is at; changed under `_arrived`
        self._inbox = Batch()
        self._arrived = threading.Condition()
        self._hurry = False
        self._stopping = False
        self._began_s = 0.0  # the batch before, by the monotonic clock
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._log = structlog.get_logger("recorder")

    def replay(self) -> None:
        """Record what an earlier incarnation has kept; before `start`.  `StoreError` if the store does not do it."""
        count = 0
        try:
            for outcomes in self._spool.read():
                batch = Batch()
                batch.outcomes += outcomes
                self._write(batch)
                count += len(outcomes)
            if self._spool:
                self._spool.clear()
        except (OSError, ValueError) as error:
            raise NodeError(
                f"the spool in the home cannot be read: {error}; move its folder away to go without"
            ) from None
        if count:
            self._log.info("recorded results from the spool", results=count)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Record what has arrived, or keep it in the spool if the store does not answer; then end."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        self._thread.join()

    def put(self, started: Sequence[Started], outcomes: Sequence[Outcome], plain: PlainEnds | None = None) -> None:
        with self._arrived:
            first = not self._inbox or ((outcomes or plain) and not self._inbox.has_ends())
            if first or not self._backlog():  # else it has been told, and has time
                self._arrived.notify()
            self._inbox.started += started
            self._inbox.outcomes += outcomes
            if plain:
                self._inbox.plain.append(plain)

    def hurry(self) -> None:
        """The store may answer again."""
        with self._arrived:
            self._hurry = True
            self._arrived.notify()

    def pending(self) -> set[AttemptKey]:
        """Attempts whose end is not known to be recorded."""
        with self._arrived:
            batches = (self._batch, self._inbox)
            keys = {outcome.key for batch in batches for outcome in batch.outcomes}
            return keys.union(*(ends.keys() for batch in batches for ends in batch.plain))

    @property
    def full(self) -> bool:
        """Whether the spool has no room for more outcomes."""
        return self._spool.full

    def _run(self) -> None:
        while self._take():
            self._until_done()

    def _take(self) -> bool:
        """Wait for something to do; False when stopping and there is nothing left."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._inbox or self._stopping)
            _gather(self._arrived, self._began_s, self._backlog, lambda: self._stopping)
            self._began_s = time.monotonic()
            self._batch, self._inbox = self._inbox, Batch()
            return bool(self._batch)

    def _until_done(self) -> None:
        """Write the batch; while the store does not answer, keep it, take in what comes, and try again."""
        pause = _PAUSE_S[0]
        while True:
            try:
                self._write(self._batch)
                break
            except StoreError as error:
                self._make_outcomes(self._batch)
                if pause == _PAUSE_S[0]:
                    waiting = len(self._batch.outcomes)
                    self._log.warning("the store does not answer, results wait", error=str(error), waiting=waiting)
            if not self._wait_out(pause):
                self._leave()
                return
            pause = min(pause * 2, _PAUSE_S[1])
        if self._spool or self._spool.full:
            try:
                self._spool.clear()
            except OSError as error:
                self._log.error("the spool cannot be emptied, the next start records it again", error=str(error))

    def _wait_out(self, pause: float) -> bool:
        """Let `pause` pass, and keep what comes meanwhile; False when stopping."""
        until = time.monotonic() + pause
        while True:
            self._keep()
            with self._arrived:
                left = until - time.monotonic()
                self._arrived.wait_for(lambda: self._inbox.has_ends() or self._stopping or self._hurry, max(0.0, left))
                hurry, self._hurry = self._hurry, False
                self._batch.started += self._inbox.started
                self._batch.outcomes += self._inbox.outcomes
                self._batch.plain += self._inbox.plain
                self._inbox = Batch()
                stopping = self._stopping
            self._make_outcomes(self._batch)
            if stopping or hurry or time.monotonic() >= until:
                return not stopping

    def _make_outcomes(self, batch: Batch) -> None:
        """Of its plain ends, as `_keep` and `finish` know them."""
        outcomes = [outcome for ends in batch.plain for outcome in self._outcomes(ends)]
        with self._arrived:
            batch.outcomes += outcomes
            batch.plain.clear()

    def _keep(self) -> None:
        """What of the batch is only in memory goes into the spool, if that has room."""
        fresh = self._batch.outcomes[self._batch.spooled :]
        if fresh and self._spool.has_room:
            try:
                self._spool.append(fresh)
                self._batch.spooled += len(fresh)
            except OSError as error:
                self._log.error("results wait in memory alone, the spool cannot be written", error=str(error))

    def _leave(self) -> None:
        self._keep()
        kept, lost = self._batch.spooled, len(self._batch.outcomes) - self._batch.spooled
        if lost:
            self._log.error("results are dropped, their attempts will run again", results=lost)
        if kept:
            self._log.warning("results are kept in the spool, the next start of this home records them", results=kept)
        self._batch = Batch()

    def _write(self, batch: Batch) -> None:
        """Record all of `batch`, taking from it what is recorded."""
        if batch.started:
            ended = {outcome.key.token for outcome in batch.outcomes}
            ended.update(*(ends.tokens() for ends in batch.plain))
            # An attempt that has ended already needs no row version that says "running".
            still_running = [started for started in batch.started if started.key.token not in ended]
            lost = self._start(still_running) if still_running else []
            batch.started.clear()
            if lost:
                self._log.warning("attempts are no longer this node's", tasks=[key.id for key in lost])
                self._disowned(lost)
        if batch.plain:
            self._write_plain(batch)
        while batch.outcomes:
            part = batch.outcomes[:_BATCH]
            records, disowned = self._finish(part)
            for key in disowned:
                self._log.warning(
                    "result dropped, the attempt is no longer this node's", task=key.id, attempt=key.attempt
                )
            gone = set(disowned)
            self._finished([outcome for outcome in part if outcome.key not in gone])
            self._deliver(records)
            with self._arrived:
                del batch.outcomes[: len(part)]
                batch.spooled = max(0, batch.spooled - len(part))

    def _write_plain(self, batch: Batch) -> None:
        """Record the plain ends of the batch that is written; those that it must be asked about become outcomes."""
        if batch.outcomes and sum(map(len, batch.plain)) < _FEW:
            self._make_outcomes(batch)
        while batch.plain:
            ends, count = PlainEnds(), 0
            for each in batch.plain:
                if count and len(ends) + len(each) > _BATCH:
                    break
                ends.take_in(each)
                count += 1
            number = self._finish_plain(ends)
            if number is not None:
                self._deliver_plain(ends, number)
            outcomes = self._outcomes(ends) if number is None else []
            with self._arrived:
                batch.outcomes += outcomes
                del batch.plain[:count]


class Deliverer:
    """Writes `.done` files for records as they come, and for those that the store says are undelivered.

    Of those it hears by `look`: a crash has left them, or a task was cancelled that never ran.
    """

    def __init__(
        self,
        *,
        write: Callable[[Sequence[Record]], None],
        undelivered: Callable[[int], Sequence[Record]],
        delivered: Callable[[Sequence[Record]], None],
        write_plain: Callable[[PlainEnds], None],
        delivered_batches: Callable[[Sequence[tuple[int, int]]], None],
        backlog: Backlog,
    ) -> None:
        self._write = write
        self._write_plain = write_plain
        self._delivered_batches = delivered_batches
        self._undelivered = undelivered
        self._delivered = delivered
        self._backlog = backlog
        # In the order in which they were recorded: of two of one task the later counts.
        self._waiting: list[Record | tuple[PlainEnds, int]] = []
        self._look = False  # into the store
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

    def put_plain(self, ends: PlainEnds, batch: int) -> None:
        with self._arrived:
            self._waiting.append((ends, batch))
            self._arrived.notify()

    def look(self) -> None:
        """The store has some that are undelivered."""
        with self._arrived:
            self._look = True
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
                records = batch or self._undelivered(_BATCH)
                self._settle(records)
                if not batch and len(records) == _BATCH:
                    self.look()
                pause = _PAUSE_S[0]
                self.out_of_space = False
            except (OSError, StoreError) as error:
                # Not lost: the store still lists them as undelivered.
                self.out_of_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
                if pause == _PAUSE_S[0]:
                    self._log.error(".done files wait", error=str(error), waiting=len(batch))
                with self._arrived:
                    self._arrived.wait_for(lambda: self._stopping, pause)
                self.look()
                pause = min(pause * 2, _PAUSE_S[1])

    def _take(self) -> list[Record | tuple[PlainEnds, int]]:
        """What has arrived; nothing if it is time to look into the store, or stopping."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting or self._look or self._stopping)
            _gather(self._arrived, self._began_s, self._backlog, lambda: self._stopping)
            self._began_s = time.monotonic()
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            if not batch:
                self._look = False
            return batch

    def _settle(self, batch: Sequence[Record | tuple[PlainEnds, int]]) -> None:
        """In order, neighbours of a kind together."""
        records: list[Record] = []
        plain: list[tuple[PlainEnds, int]] = []
        files = 0
        for each in batch:
            if isinstance(each, Record):
                self._settle_plain(plain)
                records.append(each)
                continue
            self._settle_records(records)
            if plain and files + len(each[0]) > _FILES:
                self._settle_plain(plain)
            files = len(each[0]) + (files if plain else 0)
            plain.append(each)
        self._settle_records(records)
        self._settle_plain(plain)

    def _settle_records(self, records: list[Record]) -> None:
        if records:
            self._write(records)
            self._delivered(records)
            records.clear()

    def _settle_plain(self, batches: list[tuple[PlainEnds, int]]) -> None:
        if batches:
            together = PlainEnds()
            for ends, _ in batches:
                together.take_in(ends)
            self._write_plain(together)
            self._delivered_batches([(number, len(ends)) for ends, number in batches])
            batches.clear()
