"""The thread that claims work from the store and hands it to the core.

Two kinds of news wake it: *work* (something may have become claimable: a NOTIFY, a due time, a poll)
and *room* (an attempt started or ended).  A claim that came back short says the store has nothing
more, so room alone causes no further query until there is news of work.  All news are hints; the
claim is the truth, and `POLL_S` bounds how long a lost hint can matter.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from pysched import policy
from pysched._core import Core
from pysched.engine.attempts import Attempts
from pysched.errors import StoreError
from pysched.model import Claim, Priority

POLL_S = 5.0
_RATE_WINDOW_S = 0.2
_HELD_S = 1.0  # between two looks whether claims may go on
_DOUBT_S = 15.0  # what was sent over a lost connection has been done by then, or never will be
_BACKOFF_S = (0.05, 2.0)  # first and longest pause while the store does not answer

ClaimTasks = Callable[[Priority, int, Sequence[policy.Overdue]], Sequence[Claim]]
Promote = Callable[[], float | None]
Hold = Callable[[], "str | None"]


class Dispatcher:
    """`claim(lowest, limit, overdue)` commits a claim, `start(claims)` hands it to the core; `promote()` queues what is
    due, and returns seconds to the next.

    `hold()` says why nothing is to be claimed now, or None.  `fenced()`: what a claim brings must not start any more.
    `alone()`: there is no other node whose work this one could take.  `reconcile()` hands back what the store counts as
    this node's and the node knows nothing of: a claim whose answer was lost, or came too late.  `short()`: 0, or the
    last claim left something that will fit once attempts have given back what they hold, and after so many of them it
    is worth to look.  `settled()`: for now there is nothing to claim, or no room.
    """

    def __init__(
        self,
        core: Core,
        attempts: Attempts,
        *,
        claim: ClaimTasks,
        promote: Promote,
        start: Callable[[Sequence[Claim]], None],
        ageing_s: float,
        hold: Hold,
        fenced: Callable[[], bool],
        alone: Callable[[], bool],
        reconcile: Callable[[], None],
        short: Callable[[], int],
        settled: Callable[[], None],
    ) -> None:
        self._core = core
        self._attempts = attempts
        self._claim = claim
        self._promote = promote
        self._start = start
        self._ageing_s = ageing_s
        self._claimed = 0  # sum of the limits of all claims
        self._hold = hold
        self._held_by: str | None = None
        self._fenced = fenced
        self._alone = alone
        self._reconcile = reconcile
        self._short = short
        self._settled = settled
        self._short_until: int | None = None  # attempts released by when the next claim is due, if the last came short
        self._doubts: list[float] = []  # when to reconcile next, and after that
        self._news = threading.Condition()  # guards the seven below
        self._resumed = False
        self._work_news = 0  # how often somebody said that there may be work
        self._empty = 0  # so many classes, from HIGH down, have nothing to claim as far as we know
        self._room = True  # look for room anew
        self._vacant = -1  # the lowest class there was room for at the last look, if its claims found nothing
        self._due = True
        self._stopping = False
        self._rate = StartRate()
        self._claim_s = 0.0  # how long a claim takes, smoothed
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._log = structlog.get_logger("dispatcher")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Claim no more; when this returns, no claim is under way."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._thread.join()

    def work(self) -> None:
        """Something may have become claimable."""
        self._tell(work=True)

    def room(self) -> None:
        """A worker may be free."""
        self._tell(room=True)

    def due(self) -> None:
        """A scheduled task may have reached its time."""
        self._tell(due=True)

    def resume(self) -> None:
        """What held claims up may be over, and some may have been lost meanwhile."""
        with self._news:
            self._resumed = True
        self._tell(work=True, room=True, due=True)

    def due_in(self, delay_s: float) -> None:
        """Call `due` after `delay_s`, by the core's timers."""
        self._core.arm(delay_s, 0)

    def vacancy(self) -> int:
        """Workers for which nothing is known to wait, here or in the store; for any thread, and a hint as all news."""
        if self._held_by is not None or self._empty < len(Priority) or self._stopping:
            return 0
        return max(0, self._free_workers())

    def has_free_worker(self) -> bool:
        return self._free_workers() > 0

    def _free_workers(self) -> int:
        return self._core.workers - self._core.running - sum(self._core.depths())

    def _tell(self, *, work: bool = False, room: bool = False, due: bool = False) -> None:
        with self._news:
            if work:
                self._work_news += 1
                self._empty = 0
            self._room |= room
            self._due |= due
            self._news.notify()

    def _run(self) -> None:
        pause = _BACKOFF_S[0]
        while self._await_news():
            if self._is_held():
                with self._news:
                    self._news.wait_for(lambda: self._stopping or self._resumed, _HELD_S)
                continue
            try:
                self._round()
                self._settled()
                pause = _BACKOFF_S[0]
            except StoreError as error:
                if pause == _BACKOFF_S[0]:
                    self._log.warning("the store does not answer, claims wait", error=str(error))
                self._doubt()
                self._tell(work=True, room=True, due=True)
                with self._news:
                    self._news.wait_for(lambda: self._stopping or self._resumed, pause)
                pause = min(pause * 2, _BACKOFF_S[1])

    def _is_held(self) -> bool:
        with self._news:
            if self._resumed:
                self._resumed = False
                self._doubt()
        reason = self._hold()
        if reason is not None and reason != self._held_by:
            self._log.warning("claims wait", reason=reason)
        elif reason is None and self._held_by is not None:
            self._log.info("claims go on")
        self._held_by = reason
        return reason is not None

    def _doubt(self) -> None:
        """A claim may have been committed without our knowing, or may be yet, by a server's process that has not
        noticed that nobody listens: look now, and once more later."""
        now = time.monotonic()
        self._doubts = [now, now + _DOUBT_S]

    def _await_news(self) -> bool:
        """False when stopping.  A timeout counts as news of everything."""
        with self._news:
            if not self._news.wait_for(lambda: self._stopping or self._due or self._worth_a_claim(), POLL_S):
                self._due = True
            return not self._stopping

    def _worth_a_claim(self) -> bool:
        return (self._room and self._empty < len(Priority)) or self._vacant >= self._empty or self._has_got_resources()

    def _has_got_resources(self) -> bool:
        return self._short_until is not None and self._attempts.released >= self._short_until

    def _round(self) -> None:
        """One scheduling round: promote what is due, then claim, prepare and submit until full or drained."""
        if self._due:
            self._due = False
            next_due_s = self._promote()
            if next_due_s is not None and next_due_s < POLL_S:
                self.due_in(next_due_s)
            self._tell(work=True)
        while self._doubts and time.monotonic() >= self._doubts[0]:
            self._reconcile()
            self._doubts.pop(0)
        if self._has_got_resources():
            self._short_until = None
            self._tell(work=True, room=True)
        while not self._stopping:
            self._room, self._vacant = False, -1  # before we look: room that appears from now on must count
            wanted = self._wanted()
            if wanted is None:
                return
            lowest, limit = wanted
            with self._news:
                if lowest < self._empty:
                    self._vacant = lowest
                    return
                news = self._work_news
            overdue = policy.overdue_claims(claimed=self._claimed, limit=limit, ageing_s=self._ageing_s)
            asked_s = time.monotonic()
            released = self._attempts.released
            claims = self._claim(lowest, limit, overdue)
            short = self._short()
            self._short_until = released + short if short else None
            self._claim_s += (time.monotonic() - asked_s - self._claim_s) / 4
            self._claimed += limit
            if len(claims) < limit:
                with self._news:
                    if news == self._work_news:  # nothing was said to have come while we asked
                        self._empty = lowest + 1
            if self._fenced():
                self._doubt()
                return
            self._start(claims)
            self._room = True

    def _wanted(self) -> tuple[Priority, int] | None:
        """What to claim now, if it is there; None if there is no room."""
        started_per_s = self._rate.per_second(self._core.counters()["started"], time.monotonic())
        ahead = policy.prefetch(started_per_s, self._claim_s, alone=self._alone())
        free = self._core.workers - self._core.running
        return policy.claim_limit(free_workers=free, ahead=ahead, waiting=self._core.depths())


class StartRate:
    """Attempts started a second, over the last window of at least `_RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._started = 0
        self._since = 0.0
        self._rate = 0.0

    def per_second(self, started: int, now_s: float) -> float:
        """`started`: total so far; `now_s`: a monotonic clock."""
        elapsed = now_s - self._since
        if elapsed >= _RATE_WINDOW_S:
            self._rate = (started - self._started) / elapsed
            self._started, self._since = started, now_s
        return self._rate
