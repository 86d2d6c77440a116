"""Readings of the store's news: what a reader remembers to find what has been committed since."""

from __future__ import annotations

import re
from dataclasses import dataclass

_POSITION = re.compile(
    r"(?P<ms>\d{1,15})-(?P<snapshot>\d{1,19}:\d{1,19}:(?:\d{1,19}(?:,\d{1,19}){0,499})?)\Z", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Position:
    """A reading: when it was, by the database's clock, and its snapshot, as pg_snapshot writes it."""

    ms: int  # since the epoch
    snapshot: str  # xmin:xmax:transactions that were under way in between

    def __str__(self) -> str:
        return f"{self.ms}-{self.snapshot}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        match = _POSITION.match(text)
        if match is None:
            return None
        position = cls(int(match["ms"]), match["snapshot"])
        running = [int(xid) for xid in match["snapshot"].split(":")[2].split(",") if xid]
        ordered = running == sorted(set(running)) and all(position.xmin <= xid < position.xmax for xid in running)
        return position if ordered and 0 < position.xmin <= position.xmax < 2**63 else None

    @property
    def xmin(self) -> int:
        """Every transaction before this one had ended."""
        return int(self.snapshot.split(":")[0])

    @property
    def xmax(self) -> int:
        """No transaction from this one on had begun."""
        return int(self.snapshot.split(":")[1])


@dataclass(frozen=True, slots=True)
class Reading:
    """What was committed between two positions."""

    position: Position
    changes: list[str]  # JSON arrays of {id, status, reason, attempts, exit_code}
    complete: bool  # False: there was more
