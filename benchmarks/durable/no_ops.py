"""Ends of no-ops, as `store.finish_plain` takes them from the core of a node (`csrc/plain.pyx`), whose columns need a
process for each: so these are made here, in Python, which costs more."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence

from pysched.model import Claim

_INT4, _INT8, _TEXT, _TIMESTAMPTZ = 23, 20, 25, 1184  # types, by the numbers that PostgreSQL gives them
_POSTGRES_EPOCH_US = 946_684_800_000_000
_ZERO4, _ZERO8, _NULL = struct.pack(">ii", 4, 0), struct.pack(">iq", 8, 0), struct.pack(">i", -1)


class NoOps:
    """Of these claims, all first attempts: each has just begun, and ended at once."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        self._claims = claims

    def __len__(self) -> int:
        return len(self._claims)

    def tally(self) -> dict[tuple[str, int], int]:
        counts: dict[tuple[str, int], int] = {}
        for claim in self._claims:
            kind = "succeeded", int(claim.priority)
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def ids(self, failed: bool) -> bytes:
        ids = [] if failed else [claim.key.id.encode() for claim in self._claims]
        return _array(_TEXT, len(ids), b"".join([len(id_).to_bytes(4, "big") + id_ for id_ in ids]))

    def columns(self) -> dict[str, bytes]:
        count = len(self._claims)
        now = struct.pack(">iq", 8, time.time_ns() // 1_000 - _POSTGRES_EPOCH_US)
        tokens = struct.Struct(">iq").pack
        numbers, nothing = _array(_INT8, count, _ZERO8 * count), _array(_TEXT, count, _NULL * count)
        times = _array(_TIMESTAMPTZ, count, now * count)
        return {
            "ids": self.ids(False),
            "tokens": _array(_INT8, count, b"".join([tokens(8, claim.key.token) for claim in self._claims])),
            "pids": _array(_INT4, count, struct.pack(">ii", 4, 1) * count),
            "starts": times,
            "ends": times,
            "runs_ms": numbers,
            "exit_codes": _array(_INT4, count, _ZERO4 * count),
            "cpu_ms": numbers,
            "max_rss_kb": numbers,
            "stdouts": nothing,
            "stderrs": nothing,
            "results": nothing,
        }


def _array(kind: int, count: int, elements: bytes) -> bytes:
    """Of one dimension, NULLs among them, in PostgreSQL's binary form (`array_recv`)."""
    return struct.pack(">iiIii", 1, 1, kind, count, 1) + elements
