"""Plain tables: aligned columns without frames, cut to a terminal's width, whole elsewhere."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_SGR = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
STATES = {
    "blocked": "yellow",
    "scheduled": "yellow",
    "queued": "blue",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
}
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of text."""

    title: str
    right: bool = False
    shrinks: bool = False  # gives way where the terminal is too narrow
    least: int = 8  # but not below this


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with a colour."""

    text: str
    style: str = ""


def paint(text: str, style: str, *, colour: bool) -> str:
    return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if colour and style and text else text


def width_of(text: str) -> int:
    """How many cells of a terminal it takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def cut(text: str, width: int) -> str:
    """At most `width` cells, the end shown by `…`."""
    if width_of(text) <= width:
        return text
    kept = ""
    left = max(0, width - 1)
    for char in text:
        left -= width_of(char)
        if left < 0:
            break
        kept += char
    return kept + "…"


def printable(text: str) -> str:
    """Without characters that would move the cursor or end the line: names come from anywhere."""
    return text if text.isprintable() else re.sub(r"[^\S ]|[\x00-\x1f\x7f-\x9f]", "·", text)


def lines(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], *, width: int | None, colour: bool
) -> Iterator[str]:
    """The header and a line a row; `width` None: nothing is cut."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    cells = [[Cell(printable(cell.text), cell.style) for cell in row] for row in cells]
    widths = [
        max([len(column.title), *(width_of(row[index].text) for row in cells)]) for index, column in enumerate(columns)
    ]
    if width is not None:
        _shrink(widths, columns, width)
    yield _line([Cell(column.title, "bold") for column in columns], columns, widths, colour)
    for row in cells:
        yield _line(row, columns, widths, colour)


def _shrink(widths: list[int], columns: Sequence[Column], width: int) -> None:
    """Take what is too much from the widest of the columns that give way, one by one."""
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while excess > 0:
        able = [i for i, column in enumerate(columns) if column.shrinks and widths[i] > column.least]
        if not able:
            return
        widest = max(able, key=lambda index: widths[index])
        widths[widest] -= 1
        excess -= 1


def _line(row: Sequence[Cell], columns: Sequence[Column], widths: Sequence[int], colour: bool) -> str:
    parts = []
    for cell, column, width in zip(row, columns, widths, strict=True):
        text = cut(cell.text, width)
        space = " " * (width - width_of(text))
        painted = paint(text, cell.style, colour=colour)
        parts.append(space + painted if column.right else painted + space)
    return _GAP.join(parts).rstrip()
