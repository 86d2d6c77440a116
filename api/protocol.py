"""The HTTP connection, with bounds on what one client can take: headers, and time.

uvicorn's own protocol, which reads the body no faster than it is asked for, bounds neither.  Deadlines::

    connected, or the first byte of a further request ── HEAD_S ──► 408 unless the head is whole by then
    head ── looked at every CHECK_S ──► 408 unless the body has come at BODY_RATE, but for a grace
    answered ── uvicorn's keep-alive time ──► closed unless another request has begun
    the client does not read what was written to it ── WRITE_S ──► dropped
    the server stops, and nothing has come yet ── STOP_S ──► closed; a request in that time is answered

A body that we ourselves do not read on, because too much waits for the database, is not the client's fault.

A request passes through three of them, and making and ending a timer for each would cost more than reading its head.
So a connection has one timer: it rings no later than at the deadline of the moment, and is then set to the next.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pysched.api import express

if TYPE_CHECKING:
    from pysched.api.app import ControlPlane

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
    stop_s = 0.5

    _too_large = False
    _head_bytes = 0
    _received = 0  # bytes of the body
    _begun = 0.0  # loop time at which the body began
    _answered = False  # one request at least
    _then: Callable[[], None] | None = None  # what happens at …
    _deadline = 0.0  # … this loop time
    _timer: asyncio.TimerHandle | None = None
    _rings_at = 0.0
    _write_timer: asyncio.TimerHandle | None = None
    _stopping = False
    _default_head: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    # ── what the transport calls ──────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._by(self.head_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._then = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

    def shutdown(self) -> None:
        """The server stops.  Of a new connection the first request may be on its way, or wait to be read."""
        if self._begun == 0.0 and not self._stopping:
            self._stopping = True
            self._by(self.stop_s, self.shutdown)
        else:
            super().shutdown()

    # ── what the parser calls ─────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._answered:  # else the time goes on that began with the connection
            self._by(self.head_s, self._late)

    def on_url(self, url: bytes) -> None:
        self._bound(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._bound(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._received, self._begun = 0, self.loop.time()
        self._by(self.check_s, self._check)
        submission = self._submission()
        if submission is None:
            super().on_headers_complete()
        else:
            self.cycle = submission  # type: ignore[assignment]
        if self._stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._then = None
        super().on_message_complete()
        cycle: object = self.cycle
        if isinstance(cycle, express.Submission):
            cycle.submit()

    # ── requests ──────────────────────────────────────────────────────────────────────────────────

    def _submission(self) -> express.Submission | None:
        """The request as one that can go past uvicorn, if it is one."""
        if (
            self.url != express.PATH
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or self.flow.write_paused
            or (self.cycle is not None and not self.cycle.response_complete)
            or len(self.connections) >= (self.limit_concurrency or len(self.connections) + 1)
        ):
            return None
        return express.submission(self, cast("ControlPlane", self.config.app))

    def begin_ordinary(self, body: bytes) -> None:
        """The request that has just come whole after all goes the way of all others."""
        keep_alive = self.cycle.keep_alive
        self.cycle = None  # type: ignore[assignment]
        super().on_headers_complete()
        self.cycle.keep_alive = keep_alive
        super().on_body(body)
        super().on_message_complete()

    def default_head(self) -> bytes:
        """What uvicorn adds to every answer; it makes another list when the second of the Date changes."""
        headers = self.server_state.default_headers
        if headers is not Protocol._default_head[0]:
            Protocol._default_head = (headers, b"".join(b"%s: %s\r\n" % header for header in headers))
        return Protocol._default_head[1]

    def on_response_complete(self) -> None:
        """As uvicorn's, but of a request that was answered before its body was there the rest is not read."""
        self.server_state.total_requests += 1
        self._answered = True
        if self.transport.is_closing():
            return
        if self.cycle.response_complete and self.cycle.more_body:
            self.transport.close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._then is None:  # else the next request has begun
            self._by(self.timeout_keep_alive, self.timeout_keep_alive_handler)

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
        self._refuse(408, f"the head of the request did not come within {self.head_s:g} s")

    def _check(self) -> None:
        """Whether the body comes; in time with the clock, not with every piece of it."""
        now = self.loop.time()
        if self.flow.read_paused:
            self._received, self._begun = 0, now
        elif self._received < (now - self._begun - self.grace_s) * self.body_rate:
            if self.cycle.response_started:
                self.transport.abort()
            else:
                self._refuse(408, "the body comes too slowly")
            return
        self._by(self.check_s, self._check)

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

    def _by(self, seconds: float, then: Callable[[], None]) -> None:
        """Let `then` happen in so many seconds, in the place of what was to happen before."""
        self._then, self._deadline = then, self.loop.time() + seconds
        if self._timer is None or self._rings_at > self._deadline:
            self._set(self._deadline)

    def _ring(self) -> None:
        self._timer = None
        if self._then is None:
            return  # nothing is waited for; whatever comes next sets the timer
        if self.loop.time() < self._deadline:
            self._set(self._deadline)
            return
        then, self._then = self._then, None
        then()

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = self.loop.call_at(at, self._ring), at
