"""POST /submit past uvicorn's cycle, the ASGI application, and FastAPI.

What these do for a request (a task of the event loop, two dozen coroutines, messages and their checks) costs several
times what is done for the job.  So the usual submission is taken as it comes out of the HTTP parser::

    head ── `Gate.certain`, a small JSON body, no header that means more ──► body ─► valid ─► acceptor ─► answer
      └── anything else ──► the ordinary way ◄── anything else ──────────────────────┴───────────┘

The ordinary way begins with the same head and body, and answers the same; it has all the words for what is wrong.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from pysched import trace
from pysched.api import problems
from pysched.api.scopes import Scope
from pysched.api.security import HEADERS, JSON_TYPE
from pysched.draft import Entry, draft
from pysched.errors import PyschedError, TaskError
from pysched.model import Acceptance
from pysched.task import parse_task

if TYPE_CHECKING:
    from pysched.api.app import ControlPlane
    from pysched.api.protocol import Protocol

PATH = b"/submit"
BODY_BYTES = 64 * 1024  # uvicorn's high-water mark: the body of a larger one is read as it is asked for

# What may come twice, or means more than its value, is for the ordinary way; all else means nothing here.
_READ = frozenset({b"host", b"authorization", b"content-type", b"content-length", b"traceparent"})
_SPECIAL = frozenset({b"origin", b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"tracestate"})
_JSON = JSON_TYPE.encode()
_FIXED = b"".join(b"%s: %s\r\n" % header for header in HEADERS)
_JSON_HEAD = b"content-type: application/json\r\n" + _FIXED


class _Unheard:
    """uvicorn's event of a cycle, for which nobody waits here."""

    def set(self) -> None: ...


class Submission:
    """A request under way, in the place of uvicorn's cycle: the protocol asks it what it asks a cycle."""

    message_event = _Unheard()
    response_started = False

    def __init__(self, protocol: Protocol, app: ControlPlane, traceparent: bytes | None) -> None:
        self._protocol = protocol
        self._context = app.state.context
        self._begun = time.perf_counter()
        self.keep_alive = protocol.parser.should_keep_alive()
        self._traceparent = traceparent
        self.body = b""
        self.more_body = True
        self.disconnected = False
        self.response_complete = False

    def submit(self) -> None:
        """The body is whole."""
        try:
            task = self._read()
        except TaskError:
            self._protocol.begin_ordinary(self.body)
            return
        if not self._context.acceptor.take(task, len(self.body), self._deliver):
            self._protocol.begin_ordinary(self.body)

    def _read(self) -> Entry:
        """The task; `TaskError`, also for one whose words are for the ordinary way."""
        context = {} if self._traceparent is None else trace.fields(self._traceparent.decode("latin-1"), None)
        found = None if context else draft(self.body)
        return found or parse_task(self.body).identified().traced(context)

    def _deliver(self, verdict: Acceptance | PyschedError) -> None:
        if isinstance(verdict, Acceptance):
            status = 201 if verdict.created else 200
            body = b'{"id":"%s","status":"%s"}' % (verdict.id.encode(), verdict.state.value.encode())
            head = b"%scontent-length: %d\r\n" % (_JSON_HEAD, len(body))
        else:
            answer = problems.of_error(verdict)
            status, body = answer.status_code, bytes(answer.body)
            head = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers) + _FIXED
        self._answer(status, head, body)

    def _answer(self, status: int, head: bytes, body: bytes) -> None:
        protocol = self._protocol
        if not self.disconnected:
            close = b"" if self.keep_alive else b"connection: close\r\n"
            protocol.transport.write(
                b"%s%s%s%s\r\n%s" % (STATUS_LINE[status], protocol.default_head(), head, close, body)
            )
            self._context.metrics.observe("POST", "/submit", status, time.perf_counter() - self._begun)
        self.response_complete = True
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def submission(protocol: Protocol, app: ControlPlane) -> Submission | None:
    """The request whose head has just come, if it is certain to be a usual submission."""
    read: dict[bytes, bytes] = {}
    for name, value in protocol.headers:
        if name in _READ:
            if name in read:
                return None
            read[name] = value
        elif name in _SPECIAL:
            return None
    length = read.get(b"content-length", b"")
    if not length.isdigit() or len(length) > 5 or int(length) > BODY_BYTES or read.get(b"content-type") != _JSON:
        return None
    address = protocol.client[0] if protocol.client else ""
    scope = app.gate.certain(read.get(b"host", b""), read.get(b"authorization"), address)
    usual = scope is not None and scope.includes(Scope.SUBMIT) and app.state.context.mirror is None
    return Submission(protocol, app, read.get(b"traceparent")) if usual else None
