"""Single submissions, given to the node of the same home where it has offered room (`pysched.offers`).

::

    apart ── a submission: the node's socket is there ──► connected ── room ≥ the batch ─► may ─ commit ─► did
      ▲                                                      │ └── else: inserted for whoever claims it
      └── the node ends, or nobody knows what was committed ─┘

All that can go wrong here costs time, no task: what is inserted for nobody in particular is claimed as ever, and what
the node is not told of it asks the store for when the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

from pysched import offers
from pysched.draft import Entry
from pysched.offers import Given

_AGAIN_S = 1.0  # between two looks for a node, which cost a few system calls

Insert = Callable[[Sequence[Entry]], Awaitable["set[str] | None"]]
HandOver = Callable[[Sequence[Entry], str, int], Awaitable["Mapping[str, Given | None] | None"]]

_log = structlog.get_logger("direct")


class Direct:
    """All methods belong to one event loop.  `insert` and `hand_over` are `Inserter`'s, of the store."""

    def __init__(self, home: Path, insert: Insert, hand_over: HandOver) -> None:
        self._home = home
        self._insert = insert
        self._hand_over = hand_over
        self._node: _Node | None = None
        self._again_at = 0.0

    async def insert(self, tasks: Sequence[Entry]) -> set[str] | None:
        """The ids of those that were new and are committed; None: nobody knows."""
        node = self._node or self._found()
        if node is None or len(tasks) > node.room or not all(map(_is_simple, tasks)):
            return await self._insert(tasks)
        heads = [(task.id, task.priority, task.rank, task.spec()) for task in tasks]
        if not offers.fits([spec for *_, spec in heads]):
            return await self._insert(tasks)
        created = None
        if not node.may(heads):
            return await self._insert(tasks)
        try:
            created = await self._hand_over(tasks, node.incarnation, node.schema)
        finally:
            if created is None:
                node.part()
            else:
                node.did([created.get(task.id or "") for task in tasks])
        return None if created is None else set(created)

    def close(self) -> None:
        """Nothing is under way any more."""
        if self._node is not None:
            self._node.part()

    def _found(self) -> _Node | None:
        """A node that is connected; it has no room before it has said so."""
        now = asyncio.get_running_loop().time()
        if now >= self._again_at:
            self._again_at = now + _AGAIN_S
            with contextlib.suppress(OSError):
                self._node = _Node(offers.connection(self._home), self._lost)
        return self._node

    def _lost(self) -> None:
        self._node = None


class _Node:
    """The other end of a connection, until it is parted from."""

    def __init__(self, link: socket.socket, parted: Callable[[], None]) -> None:
        self._link = link
        self._parted = parted
        self._granted = 0
        self._given = 0
        self._open = 0
        self._leaving = False
        self.incarnation = ""
        self.schema = 0
        asyncio.get_running_loop().add_reader(link, self._hear)

    @property
    def room(self) -> int:
        return 0 if self._leaving else self._granted - self._given

    def may(self, heads: Sequence[tuple[str | None, int, int, str]]) -> bool:
        if not offers.say(self._link, offers.packet("may", heads)):
            self.part()
            return False
        self._given += len(heads)
        self._open += 1
        return True

    def did(self, verdicts: Sequence[Given | None]) -> None:
        self._open -= 1
        said = offers.say(self._link, offers.packet("did", verdicts))
        if not said or (self._leaving and not self._open):
            self.part()

    def part(self) -> None:
        """Whatever is open, the node asks the store for."""
        if self._link.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()
            self._parted()
        self._leaving = True

    def _hear(self) -> None:
        try:
            while data := offers.heard(self._link):
                kind, *content = offers.unpacked(data)
                if kind == "node":
                    self.incarnation, self.schema = content
                else:
                    (self._granted,) = content
        except BlockingIOError:
            return
        except (OSError, ValueError, TypeError) as error:
            _log.warning("the node's messages make no sense", error=str(error))
            self.part()
            return
        # It ends, and waits for what is open.
        self._leaving = True
        asyncio.get_running_loop().remove_reader(self._link)
        if not self._open:
            self.part()


def _is_simple(task: Entry) -> bool:
    """Asks for a worker alone, now."""
    return task.demand is None and not task.delay_s
