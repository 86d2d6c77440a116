"""PostgreSQL's array literals, made in one pass: a column of a batch becomes one parameter.

The driver's own lists pass each element through a Python function and a regular expression, which cost more than
all else that the store does for a task.  The statements cast every array, so its text needs no type.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg.adapt import Dumper
from psycopg.pq import Format

from pysched._core import utc_text

if TYPE_CHECKING:
    from pysched.draft import Entry


class Packed(bytes):
    """An array in PostgreSQL's binary form, of whatever type the statement casts it to."""


class PackedDumper(Dumper):
    """Sends one as it is."""

    format = Format.BINARY

    def dump(self, obj: Packed) -> bytes:
        return obj


def texts(values: Iterable[str | None]) -> str:
    """text[]; no element may hold a NUL character."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def numbers(values: Iterable[float | bool | None]) -> str:
    """An array of any type of numbers, or of booleans."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def times(values: Iterable[datetime | None]) -> str:
    """timestamptz[]; every element knows its zone."""
    return "{" + ",".join(["NULL" if value is None else utc_text(value) for value in values]) + "}"


def demands(tasks: Iterable[Entry]) -> tuple[str, str, str]:
    """integer[], bigint[], integer[]: what tasks ask for; NULL for those that ask for a worker alone."""
    asked = [task.demand or (None, None, None) for task in tasks]
    cpus, memory, gpus = (numbers([demand[i] for demand in asked]) for i in range(3))
    return cpus, memory, gpus


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
