"""The HTTP connection, with bounds on what one client can take: headers, and time.

uvicorn's own protocol, which reads the body no faster than it is asked for, bounds neither.  Timers::

    connected, or the first byte of a further request ── HEAD_S ──► 408 unless the head is whole by then
    head ── checked every CHECK_S ──► 408 unless the body has come at BODY_RATE, but for a grace
    the client does not read what was written to it ── WRITE_S ──► dropped

A body that we ourselves do not read on, because too much waits for the database, is not the client's fault.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS = 100  # of a request, and …
HEAD_BYTES = 32 * 1024  # … their names and values together with the URL


class _TooLarge(Exception):
    """Raised inside the parser, which then gives up."""


class Protocol(HttpToolsProtocol):
    head_s = 15.0
    check_s = 10.0
    grace_s = 30.0  # in which nothing of the body need have come
    body_rate = 1024  # bytes a second
    write_s = 60.0

    _too_large = False
    _head_bytes = 0
    _received = 0  # bytes of the body
    _begun = 0.0  # loop time at which the body began
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    # ── what the transport calls ──────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.head_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # ── what the parser calls ─────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._timer is None:  # not the first request: the connection has been waiting
            self._arm(self.head_s, self._late)

    def on_url(self, url: bytes) -> None:
        self._bound(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._bound(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._received, self._begun = 0, self.loop.time()
        self._arm(self.check_s, self._check)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Of a request that was answered before its body was there the rest is not read."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read; its own words say nothing more."""
        if self._too_large:
            self._refuse(431, f"the headers are more than {HEADERS}, or longer than {HEAD_BYTES} bytes")
        else:
            self._refuse(400, "this is no HTTP/1.1 request")

    # ── bounds ────────────────────────────────────────────────────────────────────────────────────

    def _bound(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES or len(self.headers) >= HEADERS:
            self._too_large = True
            raise _TooLarge

    def _late(self) -> None:
        self._timer = None
        self._refuse(408, f"the head of the request did not come within {self.head_s:g} s")

    def _check(self) -> None:
        """Whether the body comes; in time with the clock, not with every piece of it."""
        self._timer = None
        now = self.loop.time()
        if self.flow.read_paused:
            self._received, self._begun = 0, now
        elif self._received < (now - self._begun - self.grace_s) * self.body_rate:
            if self.cycle.response_started:
                self.transport.abort()
            else:
                self._refuse(408, "the body comes too slowly")
            return
        self._arm(self.check_s, self._check)

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without the application, and close."""
        if self.transport.is_closing():
            return
        phrase = HTTPStatus(status).phrase
        kind = {408: "timeout", 431: "headers-too-large"}.get(status, "bad-request")
        document: dict[str, Any] = {
            "type": f"urn:pysched:problem:{kind}",
            "title": phrase,
            "status": status,
            "detail": detail,
            "errors": [],
        }
        body = json.dumps(document)
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
            f"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    def _arm(self, seconds: float, then: Any) -> None:
        self._timer = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
