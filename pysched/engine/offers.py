"""The thread through which the API of the same home gives an idle node tasks that are its own from their first commit.

A task that nobody waits before is inserted as claimed, with a token, so it costs one commit in place of two, and no
notification.  The statement itself sees to it that the node may claim and that nothing waits in the store; what the
node says is only how many of its workers are free (`pysched.offers` has the messages)::

    listening ─ API connects ─► room told ─ may ─► made ready, while the database commits ─ did ─► started
        ▲                                              │
        └── the connection ends ◄──────────────────────┴── no "did" for `PATIENCE_S`
                  └── with a "may" open: something may be ours that we do not know of ─► `doubt`: the store is asked,
                      and what it counts as ours is handed back and refused here, should it come after all

What dies, and what follows: the API before its commit: nothing was submitted.  The API after it: the connection ends,
and the task is handed back.  The node: whoever ends its lease, or follows it, hands back what has not started.
"""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import structlog

from pysched import offers
from pysched.engine.starting import Ready, Starter
from pysched.errors import PyschedError
from pysched.model import AttemptKey, Claim, Priority

PATIENCE_S = 10.0  # with a commit of the API's, whose own patience with the database is shorter
_PARTING_S = 2.0  # for commits that are under way when this node stops

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_PRIORITIES = list(Priority)


@dataclass(slots=True)
class _Open:
    """A "may" without its "did"."""

    until_s: float  # monotonic
    tasks: list[tuple[str, int, int, str]]  # id, priority, rank, spec
    ready: list[Ready | PyschedError]


class Offers:
    """`vacancy()`: workers for which nothing waits, here or in the store as far as is known; `look` is to be called
    whenever it may have changed.

    `crowded()`: what comes now would wait while another node may be free, so it is handed `back`.  `fenced()`: what
    comes must not start.  `doubt()`: see above.  `taken()`: tasks have come.
    """

    def __init__(
        self,
        home: Path,
        *,
        node: uuid.UUID,
        schema: int,
        starter: Starter,
        vacancy: Callable[[], int],
        crowded: Callable[[], bool],
        back: Callable[[Sequence[AttemptKey]], None],
        fenced: Callable[[], bool],
        doubt: Callable[[], None],
        taken: Callable[[], None],
    ) -> None:
        self._home = home
        self._hello = offers.packet("node", str(node), schema)
        self._starter = starter
        self._vacancy = vacancy
        self._crowded = crowded
        self._back = back
        self._fenced = fenced
        self._doubt = doubt
        self._taken = taken
        self._lock = threading.Lock()  # of the four below
        self._peer: socket.socket | None = None  # who may be told of room
        self._granted = 0
        self._given = 0
        self._under_way = 0  # of those: not decided yet
        self._open: deque[_Open] = deque()  # the thread's own
        self._stopping = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)
        self._log = structlog.get_logger("offers")

    def start(self) -> None:
        """`OSError` if the home folder takes no socket."""
        self._listening = offers.listener(self._home)
        self._thread.start()

    def stop(self) -> None:
        """Take no more; when this returns, nothing is under way that could still come."""
        if self._thread.ident is None:
            return
        self._stopping = True
        os.eventfd_write(self._bell, 1)
        self._thread.join()

    def look(self) -> None:
        """Tell of room, if what was told last is less than half or more than twice of what is there: a message for each
        start and end would cost more than the room is worth."""
        with self._lock:
            if self._peer is None:
                return
            left = self._granted - self._given
            room = max(0, self._vacancy() - self._under_way)
            if room <= 2 * left and left <= 2 * room:
                return
            self._granted = self._given + room
            if not offers.say(self._peer, offers.packet("room", self._granted)):
                self._peer.shutdown(socket.SHUT_RDWR)  # which the thread hears
                self._peer = None

    # ── the thread ────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        with self._listening:
            while not self._stopping:
                if self._listening.fileno() in self._heard(self._listening, None):
                    with self._listening.accept()[0] as peer:
                        self._serve(peer)

    def _heard(self, source: socket.socket, wait_s: float | None) -> set[int]:
        """Descriptors that have something to read; none if the time is over."""
        poll = select.poll()  # not select, which knows no descriptor above 1,023
        poll.register(source, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        found = {descriptor for descriptor, _ in poll.poll(None if wait_s is None else math.ceil(wait_s * 1000))}
        if self._bell in found:
            os.eventfd_read(self._bell)
        return found

    def _serve(self, peer: socket.socket) -> None:
        """Until the connection ends, by whomever."""
        with self._lock:
            self._granted = self._given = self._under_way = 0
            self._peer = peer if offers.say(peer, self._hello) else None
        self.look()
        try:
            self._listen(peer)
        except (OSError, ValueError, TypeError, LookupError) as error:
            self._log.warning("the API's messages make no sense", error=str(error))
        with self._lock:
            self._peer = None
        self._starter.forget_refused()
        if self._open:
            self._log.info("the API ended or fell silent before it said what is committed", batches=len(self._open))
            self._open.clear()
            self._doubt()

    def _listen(self, peer: socket.socket) -> None:
        parting_s: float | None = None
        while True:
            if self._stopping and parting_s is None:
                with self._lock:
                    self._peer = None
                peer.shutdown(socket.SHUT_WR)  # the API decides what is open, and closes
                parting_s = time.monotonic() + _PARTING_S
            ends = [each for each in (parting_s, self._open[0].until_s if self._open else None) if each is not None]
            wait_s = max(0.0, min(ends) - time.monotonic()) if ends else None
            heard = self._heard(peer, wait_s)
            if peer.fileno() in heard:
                data = offers.heard(peer)
                if not data:
                    return
                self._hear(offers.unpacked(data))
            elif not heard:
                return

    def _hear(self, message: list[Any]) -> None:
        kind, content = message
        if kind == "may":
            tasks = [(task_id, priority, rank, spec) for task_id, priority, rank, spec in content]
            with self._lock:
                self._given += len(tasks)
                self._under_way += len(tasks)
            made = _Open(time.monotonic() + PATIENCE_S, tasks, [])
            self._open.append(made)
            made.ready += [self._starter.ready(task_id, 1, spec) for task_id, _, _, spec in tasks]
        elif kind == "did":
            given = self._open.popleft()
            self._begin(given, content)
            with self._lock:
                self._under_way -= len(given.tasks)
            self.look()
        else:
            raise ValueError(f"{kind!r} is no message of the API's")

    def _begin(self, given: _Open, verdicts: Sequence[Sequence[int] | None]) -> None:
        claims = [
            (_claim(task, verdict), ready)
            for task, ready, verdict in zip(given.tasks, given.ready, verdicts, strict=True)
            if verdict is not None
        ]
        if not claims:
            return
        if self._fenced():
            self._doubt()
        elif self._crowded():
            self._back([claim.key for claim, _ in claims])
        else:
            self._starter.start_ready(claims)
        self._taken()


def _claim(task: tuple[str, int, int, str], verdict: Sequence[int]) -> Claim:
    task_id, priority, rank, spec = task
    token, sequence, submitted_us = verdict
    submitted_at = _EPOCH + timedelta(microseconds=submitted_us)
    return Claim(
        key=AttemptKey(task_id, 1, token),
        priority=_PRIORITIES[priority],
        rank=rank,
        sequence=sequence,
        spec=spec,
        failures=0,
        submitted_at=submitted_at,
        waited_s=max(0.0, (datetime.now(timezone.utc) - submitted_at).total_seconds()),
    )
