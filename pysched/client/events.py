"""Streams of server-sent events: parsed, and resumed where they broke off.  Pure; the clients do the I/O."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from pysched.client.wire import Request

_TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    kind: str
    data: dict[str, Any]


@dataclass(slots=True)
class Subscription:
    """What to ask for, and how far one has come."""

    path: str
    params: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    last_id: str | None = None
    _kind: str = ""
    _data: list[str] = field(default_factory=list)

    def request(self) -> Request:
        """For the first connection, or for the one after the last that broke."""
        self._kind, self._data = "", []
        headers = {"Accept": "text/event-stream"}
        if self.last_id is not None:
            headers["Last-Event-ID"] = self.last_id
        return Request("GET", self.path, self.params, headers)

    def feed(self, line: bytes) -> Event | None:
        """The event that this line completes, if it does."""
        name, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
            case "id":
                self.last_id = value
            case "" if not line.strip() and (self._kind or self._data):  # not a comment, which is `:` and a text
                event = Event(self._kind, json.loads("\n".join(self._data) or "{}"))
                self._kind, self._data = "", []
                return event
        return None


def ends_of_tasks() -> Subscription:
    return Subscription("/events", {"status": _TERMINAL})


def log_of(task_id: str, stream: str, offset: int, attempt: int | None) -> Subscription:
    params = {"stream": stream, "offset": str(offset)} | ({} if attempt is None else {"attempt": str(attempt)})
    return Subscription(f"/tasks/{quote(task_id, safe='')}/logs/follow", params)


def log_bytes(event: Event) -> bytes:
    """What a `log` event holds."""
    if "base64" in event.data:
        return base64.b64decode(event.data["base64"])
    return str(event.data["text"]).encode()
