"""Takes over what an earlier incarnation of this home's node left running, its guard having lived on.

::

    table ──rows──► adopt (SQL: the claims that this home still holds)
                      │
      row               │ claim held                                  │ no such claim
      RUNNING, STARTING │ the core goes on with it ─► EXITED, as ever  │ killed: another node has recorded its end
      ENDED             │ its end is recorded                         │ forgotten: the end was recorded
      LOST              │ killed; lost ─► retry rule                  │ killed
      NEVER ran         │ handed back, under the same number          │ forgotten
      of poison         │ killed; parked                              │

A row goes when the outcome is committed, so a crash in the middle leaves what the next incarnation needs to do it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pysched import _core, policy
from pysched._core import AttemptRow, AttemptTable, Core, Event, Program
from pysched.engine import recovery
from pysched.engine.attempts import Attempts, Held
from pysched.engine.leftovers import end_leftovers
from pysched.errors import PyschedError
from pysched.model import Abandoned, Outcome
from pysched.task import Task

_NS = 1e9

Adopt = Callable[[Sequence[int], Sequence[int]], Sequence[Abandoned]]  # tokens, suspects
Prepare = Callable[[Abandoned, Task], Program]


@dataclass(slots=True)
class Adoption:
    """What there was to take over, and what is to be done with it."""

    running: int = 0  # in the core's hands
    ends: list[Event] = field(default_factory=list)  # of attempts that are held and ended meanwhile
    outcomes: list[Outcome] = field(default_factory=list)  # of those of which no more is known
    forgotten: list[int] = field(default_factory=list)  # tokens of rows that nobody needs
    killed: int = 0  # processes


class Adopter:
    """`crashed_ns`: when the node before ended by itself (CLOCK_BOOTTIME); None: it did not."""

    def __init__(
        self, core: Core, table: AttemptTable, attempts: Attempts, *, adopt: Adopt, prepare: Prepare,
        crashed_ns: int | None,
    ) -> None:  # fmt: skip
        self._core = core
        self._table = table
        self._attempts = attempts
        self._adopt = adopt
        self._prepare = prepare
        self._crashed_ns = crashed_ns

    def run(self) -> Adoption:
        """Before anything else is claimed or swept."""
        rows = self._table.rows()
        if not rows:
            return Adoption()
        suspects = [row.token for row in rows if self._suspect(row)]
        claims = {item.claim.key.token: item for item in self._adopt([row.token for row in rows], suspects)}
        adoption = Adoption()
        doomed: set[int] = set()  # marks
        for row in rows:
            item = claims.get(row.token)
            if item is None:
                adoption.forgotten.append(row.token)
                if row.state not in {_core.ROW_ENDED, _core.ROW_NEVER_RAN} or row.ending:
                    doomed.add(row.mark)
            elif self._settle(adoption, row, item):
                doomed.add(row.mark)
        if doomed:
            # Before anything is recorded: from then on somebody may start the next attempt.
            adoption.killed = end_leftovers(set(), doomed)
        return adoption

    def _settle(self, adoption: Adoption, row: AttemptRow, item: Abandoned) -> bool:
        """Decide about an attempt that this node holds; whether its processes must die."""
        if row.state == _core.ROW_NEVER_RAN or (row.state == _core.ROW_STARTING and row.pid == 0):
            adoption.outcomes.append(recovery.returned(item, void=True))
            return False
        if policy.is_poison(item.crashes):
            adoption.outcomes.append(recovery.lost(item, crashes=item.crashes))
            return True
        if row.state == _core.ROW_LOST:
            adoption.outcomes.append(recovery.lost(item, crashes=item.crashes + 1))
            return True
        try:
            task = Task.from_spec(item.claim.key.id, item.claim.spec)
            program = self._prepare(item, task)
        except PyschedError:  # of a newer version, that this one has come after
            adoption.outcomes.append(recovery.lost(item, crashes=item.crashes))
            return True
        held = Held(item.claim, task, program, task.demand)
        handle = self._attempts.add(held)
        if row.state != _core.ROW_ENDED:
            if self._core.adopt(held.launch(handle, adopted=row)):
                adoption.running += 1
                return False
            row = self._table.row(row.token)  # it ended just now
        adoption.ends.append(row.end(handle))
        return row.ending or row.state != _core.ROW_ENDED

    def _suspect(self, row: AttemptRow) -> bool:
        return (
            self._crashed_ns is not None
            and row.state in {_core.ROW_STARTING, _core.ROW_RUNNING, _core.ROW_ENDED}
            and policy.is_suspect(since_s=row.since_ns / _NS, crashed_s=self._crashed_ns / _NS)
        )
