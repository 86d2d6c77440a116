"""A node's claims, at a rate that does not depend on what the table has behind it.

Claimed tasks leave the index of what is ready, but their entries stay until nobody can see the rows any more.  While an
old snapshot is open (a dump, a forgotten transaction) that is never, and each claim that begins at the head passes
over all that were claimed since: 0.25 µs each, and soon more than the claim itself.  So a claimer remembers how far it
has come in each class, and goes on from there::

    whole ── had to pass over much, or thrice took too long ► resumed  from the remembered place of each class
      ▲                                                          │
      └── `_SHARE` times what that cost has passed, or the resumed one came back short

How much was passed over is not timed, which a busy machine would get wrong, but counted by the server.

What becomes ready behind that place (a retry, a freed or a handed-back task, one of larger rank) waits for the next
whole claim: at most `_SHARE` times what a whole claim takes, which thus costs at most a fortieth of the time.
Only where entries of dead rows pile up, or the store is that slow, does any of this happen; else every claim is a whole
one, exact to the task.

Tasks that ask for processors, memory or GPUs wait at a place of their own, and while there are any that this node could
take now (`Room.reach`) the statements above give nothing.  Then a claim is two statements: what could be claimed is
read, `resources.choose` says which, and those that nobody else has taken meanwhile are.  Once nothing is left there
that is within reach, claims are as before::

    one statement ── gave nothing ► two statements
      ▲                              │
      └── nothing that asks for anything was within reach
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pysched import resources
from pysched.model import AttemptKey, Claim, Priority
from pysched.policy import Overdue
from pysched.resources import PLENTY, Candidate, Demand, Room
from pysched.store import arrays, sql
from pysched.store.database import Database

_SLOW_S = 0.005  # beyond `_TASK_S` for each task: whole claims that take longer are not repeated at once
_SLOW_IN_A_ROW = 3  # a machine that stalls for a moment is no slow store
_TASK_S = 0.00005
_ENTRY_S = 0.00000025  # to pass over an entry of a task that was claimed before
_FEW = 2  # such entries for each task are lost in what its claim costs
_SHARE = 40
_ANY_RANK = 2**31  # above all

_ROUNDS = 4  # in which others take what one has chosen

_QUERIES = sql.load("claim")
_SIZED = sql.load("sized")
_PRIORITIES = list(Priority)


def unlimited() -> Room:
    """Of whoever does not count."""
    return Room(capacity=PLENTY, free=PLENTY)


class Claimer:
    """The claims of one incarnation; one thread at a time.  `schema`: the version of it that this code knows; `room()`:
    what there is for tasks that ask for something."""

    def __init__(
        self,
        database: Database,
        incarnation: uuid.UUID,
        schema: int,
        clock: Callable[[], float] = time.monotonic,
        room: Callable[[], Room] = unlimited,
    ) -> None:
        self._database = database
        self._node = {"node": incarnation, "schema": schema}
        self._room = room
        self._clock = clock
        self._sized = False  # tasks that ask for something within reach wait, as far as is known
        self._reach: dict[str, int] = {}  # parameters: what this node could take now, and with all that it has
        self._again_after = 0  # of the room
        # The last claim left one that will fit once more is free, and after so many ends it is worth to look; 0: none.
        self.short = 0
        self._whole_from_s = 0.0  # when a whole claim may be made again
        self._excess_s: deque[float] = deque(maxlen=_SLOW_IN_A_ROW)  # of the last whole claims
        self._heads: dict[Priority, tuple[int, int]] = {}  # rank and sequence before which nothing was left
        self._owed: dict[Priority, Overdue] = {}  # what resumed claims did not look for

    def claim(self, *, lowest: Priority, limit: int, overdue: Sequence[Overdue] = ()) -> list[Claim]:
        """See `Store.claim`."""
        self.short = 0
        room = self._room()
        self._reach = {**_amounts("", room.reach), **_amounts("has_", room.capacity)}
        self._again_after = room.again_after
        claims = [] if self._sized else self._plain(lowest, limit, overdue)
        return claims or self._of_all(lowest, limit, overdue, room)

    def _of_all(self, lowest: Priority, limit: int, overdue: Sequence[Overdue], room: Room) -> list[Claim]:
        claims: list[Claim] = []
        for _ in range(_ROUNDS):
            found = self._candidates(lowest, limit - len(claims), overdue, room)
            chosen, left = resources.choose(found, limit=limit - len(claims), room=room)
            self.short = room.again_after if left else 0
            taken = self._take(chosen)
            claims += taken
            if len(taken) == len(chosen):
                break
            room = room.after([candidate for candidate in found if candidate.id in {claim.key.id for claim in taken}])
        return _in_order(claims)

    def _take(self, ids: Sequence[str]) -> list[Claim]:
        """Those of them that nobody has taken meanwhile."""
        if not ids:
            return []
        rows = self._database.execute(_SIZED.take, {**self._node, "ids": arrays.texts(ids)})
        return [claim_of(row) for row in rows]

    def _candidates(self, lowest: Priority, limit: int, overdue: Sequence[Overdue], room: Room) -> list[Candidate]:
        beyond = room.ahead + (room.reserve_after_s is not None)
        parameters = {
            "lowest": int(lowest),
            "limit": limit,
            "firsts": beyond + 1,  # the last one says that there are more
            **_amounts("", room.free),
            **_amounts("has_", room.capacity),
            **_amounts("reach_", room.reach),
            **_overdue(overdue),
        }
        rows = self._database.execute(_SIZED.candidates, {**self._node, **parameters})
        self._sized = any(sized for *_, sized in rows)
        return [
            Candidate(id=task_id, demand=None if cpus is None else Demand(cpus, mem, gpus), waited_s=waited_s)
            for task_id, cpus, mem, gpus, waited_s, _ in rows
        ]

    def _plain(self, lowest: Priority, limit: int, overdue: Sequence[Overdue]) -> list[Claim]:
        if self._clock() >= self._whole_from_s:
            return self._whole(lowest, limit, self._with_owed(overdue, limit))
        claims = self._resumed(lowest, limit)
        for part in overdue:
            owed = self._owed.get(part.priority)
            self._owed[part.priority] = part if owed is None else _more(part, owed.limit)
        if len(claims) < limit:
            claims += self._whole(lowest, limit - len(claims), self._with_owed((), limit - len(claims)))
        return _in_order(claims)

    def _whole(self, lowest: Priority, limit: int, overdue: Sequence[Overdue]) -> list[Claim]:
        began_s = self._clock()
        parameters = {"lowest": int(lowest), "limit": limit, **self._reach, **_overdue(overdue)}
        rows = self._database.execute(_QUERIES.claim, {**self._node, **parameters})
        claims = _in_order([claim_of(row) for *row, _, _ in rows])
        self.short = self._again_after if rows and rows[0][-1] else 0
        self._excess_s.append(self._clock() - began_s - _TASK_S * len(claims))
        excess_s = min(self._excess_s) if len(self._excess_s) == _SLOW_IN_A_ROW else 0.0
        if excess_s <= _SLOW_S:
            passed_over = rows[0][-2] - len(rows) if rows else 0
            excess_s = passed_over * _ENTRY_S if passed_over > _FEW * len(rows) else 0.0
        self._whole_from_s = self._clock() + _SHARE * excess_s
        self._heads.clear()
        # Of a class, as many as were asked for out of turn may lie behind what was left; the others were its first.
        self._remember(claims, {part.priority: part.limit for part in overdue})
        return claims

    def _resumed(self, lowest: Priority, limit: int) -> list[Claim]:
        parts: list[tuple[bool, int, int, int]] = []  # of one rank, priority, rank, sequence
        for priority in _PRIORITIES[: lowest + 1]:
            if priority in self._heads:
                rank, sequence = self._heads[priority]
                parts += [(True, priority, rank, sequence), (False, priority, rank, 0)]
            else:
                parts.append((False, priority, _ANY_RANK, 0))
        same, priorities, ranks, sequences = (arrays.numbers(map(int, column)) for column in zip(*parts, strict=True))
        parameters = {"same": same, "priorities": priorities, "ranks": ranks, "sequences": sequences, "limit": limit}
        parameters.update(self._reach)
        rows = self._database.execute(_QUERIES.resume, {**self._node, **parameters})
        claims = _in_order([claim_of(row) for *row, _, _ in rows])
        self.short = self._again_after if rows and rows[0][-1] else 0
        self._remember(claims, {})
        return claims

    def _remember(self, claims: Sequence[Claim], out_of_turn: dict[Priority, int]) -> None:
        for priority in _PRIORITIES:
            own = [claim for claim in claims if claim.priority is priority]
            sure = len(own) - out_of_turn.get(priority, 0)
            if sure > 0:
                self._heads[priority] = own[sure - 1].rank, own[sure - 1].sequence

    def _with_owed(self, overdue: Sequence[Overdue], limit: int) -> list[Overdue]:
        """What to look for out of turn, with what is owed, within `limit`."""
        wanted = dict(self._owed)
        for part in overdue:
            wanted[part.priority] = _more(part, wanted[part.priority].limit if part.priority in wanted else 0)
        self._owed.clear()
        found = []
        for part in wanted.values():
            found.append(Overdue(priority=part.priority, after_s=part.after_s, limit=min(part.limit, limit)))
            limit -= found[-1].limit
        return found


def _overdue(overdue: Sequence[Overdue]) -> dict[str, str]:
    return {
        "overdue_priorities": arrays.numbers([int(part.priority) for part in overdue]),
        "overdue_after": arrays.numbers([part.after_s for part in overdue]),
        "overdue_limits": arrays.numbers([part.limit for part in overdue]),
    }


def _amounts(prefix: str, amount: Demand) -> dict[str, int]:
    """As parameters; what is overdrawn is nothing."""
    return {f"{prefix}{name}": max(0, value) for name, value in zip(("cpus", "mem", "gpus"), amount, strict=True)}


def claim_of(row: Sequence[Any]) -> Claim:
    task_id, attempt, token, priority, rank, sequence, spec, failures, submitted_at, waited_s = row
    return Claim(
        key=AttemptKey(task_id, attempt, token),
        priority=_PRIORITIES[priority],
        rank=rank,
        sequence=sequence,
        spec=spec,
        failures=failures,
        submitted_at=submitted_at,
        waited_s=max(0.0, waited_s),  # the server's clock may have been set back
    )


def _in_order(claims: list[Claim]) -> list[Claim]:
    return sorted(claims, key=lambda claim: (claim.priority, -claim.rank, claim.sequence))


def _more(part: Overdue, count: int) -> Overdue:
    return Overdue(priority=part.priority, after_s=part.after_s, limit=part.limit + count)
