"""Durations and moments as people write and read them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pysched.client.results import Node

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]*)")
_LONG = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "hr": "h", "day": "d", "week": "w"}


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `2h30m`, `1.5d`, `200ms`; ValueError says what would be right."""
    left = text.strip().lower()
    total, position = 0.0, 0
    for part in _PART.finditer(left):
        if left[position : part.start()].strip():
            break
        unit = part[2]
        unit = _LONG.get(unit.rstrip("s"), unit)
        if not unit and (part.end() != len(left) or position):
            break
        if (unit or "s") not in _SECONDS:
            raise ValueError(f"{text!r} has the unit {unit!r}; use {', '.join(_SECONDS)}, as in 90s or 2h30m")
        total += float(part[1]) * _SECONDS[unit or "s"]
        position = part.end()
    if not left or position != len(left):
        raise ValueError(f"{text!r} is no duration; write seconds, or a number with a unit, as in 90s or 2h30m")
    return total


def parse_moment(text: str, now: datetime) -> datetime:
    """`2026-11-24`, `2026-11-24T10:00`, with or without an offset (else local), or a duration ago, as `2h`."""
    try:
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
    except ValueError:
        try:
            return now - timedelta(seconds=parse_duration(text))
        except (ValueError, OverflowError):
            raise ValueError(f"{text!r} is no time; write how long ago, as 2h, or when, as 2026-11-24T10:00") from None
    return moment.astimezone()


if TYPE_CHECKING:
    _OfFloat = click.ParamType[float]
else:
    _OfFloat = click.ParamType  # generic only in newer versions of click


class Duration(_OfFloat):
    """An option's value in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float | int):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()


def duration(seconds: float) -> str:
    """In four or five characters: `85ms`, `4.2s`, `12m03`, `3h20`, `6d04`."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}" if hours < 48 else f"{hours // 24}d{hours % 24:02}"


def resources(node: Node) -> tuple[str, str, str]:
    """Processors, memory and GPUs: what is held of what there is; a server of before does not say."""
    cpus, mem, gpus = node.get("cpus", 0), node.get("mem", 0), node.get("gpus", 0)
    return (
        f"{node['cpus_held']:g}/{cpus:g}" if cpus else "-",
        f"{size(node['mem_held'])}/{size(mem)}" if mem else "-",
        f"{node['gpus_held']:g}/{gpus:g}" if gpus else "-",
    )


def allowed(node: Node) -> int:
    """Attempts that it runs at most now; a server of before does not say."""
    return node.get("allowed", node["workers"])


def short_of(node: Node) -> str | None:
    """Why these are fewer than its workers, if they are."""
    return node.get("short_of")


def moment(text: str) -> datetime:
    """Of the server's RFC 3339."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def local(text: str | None) -> str:
    """A moment of the server's in this machine's time; the day only if it is not today."""
    if text is None:
        return "-"
    here = moment(text).astimezone()
    today = datetime.now(timezone.utc).astimezone().date()
    return here.strftime("%H:%M:%S" if here.date() == today else "%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """Of bytes, in four or five characters: `812B`, `1.4M`, `23G`."""
    value, unit = float(count), "B"
    for unit in "BKMGT":
        if value < 999.5 or unit == "T":
            break
        value /= 1024
    return f"{value:.0f}{unit}" if value >= 9.95 or unit == "B" else f"{value:.1f}{unit}"
