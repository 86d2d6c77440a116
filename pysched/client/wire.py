"""HTTP/1.1 for the blocking client: the standard library's connections, kept alive and shared between threads.

Not httpx, which `AsyncClient` uses: importing that takes longer than a client command may take as a whole
(`make bench-cli` shows both).

::

    idle ──take──► in use ──answer read whole──► idle
      ▲              │
      └── (new) ◄────┴── an error, `Connection: close`, or the server hung up meanwhile: closed, never used again
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlencode, urlsplit

from pysched.discovery import Address, is_loopback

_IDLE_MAX = 16  # connections kept for later


@dataclass(frozen=True, slots=True)
class Request:
    """What to send."""

    method: str
    path: str  # quoted
    params: Mapping[str, str | Sequence[str]] = field(default_factory=dict)  # a sequence: once each
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True  # a second arrival changes nothing

    @property
    def target(self) -> str:
        return f"{self.path}?{urlencode(self.params, doseq=True)}" if self.params else self.path


@dataclass(frozen=True, slots=True)
class Response:
    """What came back; the names of headers in lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""


class NotSent(Exception):
    """The request cannot have arrived: there was no connection."""


class Lost(Exception):
    """The request may have arrived, the answer did not."""


class Transport(Protocol):
    """Sends one request; raises `NotSent` or `Lost`."""

    def exchange(self, request: Request) -> Response: ...

    def stream(self, request: Request, deadline: float) -> AbstractContextManager[tuple[Response, Iterator[bytes]]]:
        """The answer as it begins and its lines as they come, until `deadline`; an answer that is no 200 has none."""
        ...

    def close(self) -> None: ...


class Connections:
    """The transport over the network."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        parts = urlsplit(address.url)
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._prefix = parts.path
        self._authority = parts.netloc.rpartition("@")[2]
        self._authorization = None if address.token is None else f"Bearer {address.token}"
        self._timeout_s = timeout_s
        self._proxy = _proxy_of(parts.scheme, parts.hostname or "")
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []

    def exchange(self, request: Request) -> Response:
        connection = self._take(fresh=not request.repeatable)
        try:
            answer = self._ask(connection, request)
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Lost(_reason(error)) from None
        except BaseException:
            connection.close()  # ^C in the middle: what comes next on it would be the wrong answer
            raise
        self._give_back(connection)
        return _response(answer, content)

    @contextmanager
    def stream(self, request: Request, deadline: float) -> Iterator[tuple[Response, Iterator[bytes]]]:
        connection = self._take(fresh=True)
        try:
            answer = self._ask(connection, request)
            content = b"" if answer.status == 200 else answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Lost(_reason(error)) from None
        except BaseException:
            connection.close()
            raise
        try:
            yield _response(answer, content), self._lines(connection, answer, deadline)
        finally:
            answer.close()
            connection.close()

    def _lines(
        self, connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, deadline: float
    ) -> Iterator[bytes]:
        sock = connection.sock
        try:
            while True:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return
                if sock is not None:
                    sock.settimeout(min(left_s, self._timeout_s))
                if not (line := answer.readline()):
                    return
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise Lost(_reason(error)) from None

    def _ask(self, connection: http.client.HTTPConnection, request: Request) -> http.client.HTTPResponse:
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as error:
                raise NotSent(_reason(error)) from None
        headers = {"Host": self._authority, "Authorization": self._authorization, **request.headers}
        known = {name: value for name, value in headers.items() if value is not None}
        connection.request(request.method, self._target(request), request.content, known)
        return connection.getresponse()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _target(self, request: Request) -> str:
        target = self._prefix + request.target
        # A proxy is told the whole address; behind a tunnel, as for https, the server is spoken to as if directly.
        return target if self._proxy is None or self._secure else f"http://{self._authority}{target}"

    def _take(self, *, fresh: bool) -> http.client.HTTPConnection:
        """One to use; `fresh` where a request must not run into a connection that the server is about to close."""
        while not fresh:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()  # readable while nothing was asked: the server hung up
        return self._connection()

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is None:  # the server wanted it closed
            return
        with self._lock:
            if len(self._idle) < _IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        if self._proxy is None:
            return kind(self._host, self._port, timeout=self._timeout_s)
        connection = kind(self._proxy[0], self._proxy[1], timeout=self._timeout_s)
        if self._secure:
            connection.set_tunnel(self._host, self._port)
        return connection


def _response(answer: http.client.HTTPResponse, content: bytes) -> Response:
    return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, content)


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()  # not select(2), which knows no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _proxy_of(scheme: str, host: str) -> tuple[str, int] | None:
    """The proxy that the environment names for `host`; this machine's own loopback is never behind one."""
    if is_loopback(host) or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    proxy = urlsplit(getproxies_environment().get(scheme, ""))
    if proxy.hostname is None or proxy_bypass(host):
        return None
    return proxy.hostname, proxy.port or 80
