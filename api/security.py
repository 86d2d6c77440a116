"""Who may talk to the control plane.

Whoever can submit a task can run any program, so every request passes this gate before anything is
routed or a byte of its body is read:

* the `Host` must be a name of this server: a page that rebinds its own name to 127.0.0.1 is refused;
* a foreign `Origin` is refused on every method: no web page of another site speaks to the scheduler;
* the bearer token must be right, except that `/health` may be asked without one; what it may do is for routes to say;
* a body must be JSON, which an HTML form cannot send.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import time
from dataclasses import dataclass

import structlog
from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pysched.api import problems
from pysched.api import scopes as access
from pysched.api.keyring import Failures, Keyring, checked_token
from pysched.errors import SettingsError, StoreError

OPEN_PATHS = frozenset({"/health"})  # answered without a token
JSON_TYPE = "application/json"
NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})

HEADERS = [  # of every answer
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?\Z")
_log = structlog.get_logger("api")


@dataclass(slots=True)
class Head:
    """The headers that matter here, read in one pass, since every request pays for it."""

    hosts: list[bytes]
    origins: list[bytes]
    authorizations: list[bytes]
    media_types: list[bytes]
    encodings: list[bytes]
    has_body: bool = False

    @classmethod
    def of(cls, scope: Scope) -> Head:
        head = cls([], [], [], [], [])
        for name, value in scope["headers"]:
            if name == b"host":
                head.hosts.append(value)
            elif name == b"authorization":
                head.authorizations.append(value)
            elif name == b"content-type":
                head.media_types.append(value)
            elif name == b"content-length":
                head.has_body = head.has_body or value != b"0"
            elif name == b"origin":
                head.origins.append(value)
            elif name == b"transfer-encoding":
                head.has_body = True
            elif name == b"content-encoding":
                head.encodings.append(value)
        return head


class Gate:
    """ASGI application around the others, so its headers are on every answer and its 500 is the last resort."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, hosts: frozenset[str], any_address: bool) -> None:
        self._app = app
        self._keyring = keyring
        self._failures = Failures()
        self._hosts = hosts
        self._any_address = any_address  # whether a Host that is an IP address is ours, whichever it is

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = complete = False

        async def send_safely(message: Message) -> None:
            nonlocal started, complete
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *HEADERS]
            else:
                complete = not message.get("more_body", False)
            await send(message)

        head = Head.of(scope)
        refusal = await self._refusal(scope, head)
        if refusal is not None:
            if head.has_body:
                refusal.headers["Connection"] = "close"  # rather than read what nobody wants
            await refusal(scope, receive, send_safely)
            return
        try:
            await self._app(scope, receive, send_safely)
        except Exception:
            _log.exception("request failed", method=scope["method"], path=scope["path"])
            if complete:
                return  # Starlette has answered, and passes the error on for the log
            if started:
                raise  # too late for words: the server closes the connection
            await problems.internal()(scope, receive, send_safely)

    def certain(self, host: bytes, authorization: bytes | None, address: str) -> access.Scope | None:
        """What a request may do that is certain to pass, if its other headers say nothing; None: call this instead."""
        name = _host_name(host.decode("latin-1"))
        if name is None or not (name in self._hosts or (self._any_address and _is_address(name))):
            return None
        if self._keyring.open:
            return access.Scope.ADMIN
        if authorization is None or self._failures.wait_s(address, time.monotonic()) > 0:
            return None
        scheme, _, token = authorization.partition(b" ")
        return self._keyring.known(token.strip()) if scheme.lower() == b"bearer" else None

    async def _refusal(self, scope: Scope, head: Head) -> Response | None:
        return (
            self._wrong_host(head)
            or self._wrong_origin(head)
            or await self._wrong_token(scope, head)
            or _wrong_body(head)
        )

    def _wrong_host(self, head: Head) -> Response | None:
        name = _host_name(head.hosts[0].decode("latin-1")) if len(head.hosts) == 1 else None
        if name is None:
            return problems.problem(400, "the request needs one Host header with a host name")
        if name in self._hosts or (self._any_address and _is_address(name)):
            return None
        return problems.problem(421, f"this server is not called {name}; use {', '.join(sorted(self._hosts))}")

    def _wrong_origin(self, head: Head) -> Response | None:
        own = head.hosts[0].lower()
        if not head.origins or all(origin.lower() in (b"http://" + own, b"https://" + own) for origin in head.origins):
            return None
        return problems.problem(403, "a page of another origin may not speak to this server")

    async def _wrong_token(self, scope: Scope, head: Head) -> Response | None:
        """Sets `scope` in the request's state: what its token may do, None without one."""
        state = scope.setdefault("state", {})
        state["scope"] = access.Scope.ADMIN if self._keyring.open else None
        if self._keyring.open:
            return None
        if not head.authorizations:
            if scope["path"] in OPEN_PATHS:
                return None
            return _unauthorized(
                "a token is needed: send Authorization: Bearer TOKEN; it stands in the server's HOME/token"
            )
        address, now = (scope.get("client") or ("", 0))[0], time.monotonic()
        wait_s = self._failures.wait_s(address, now)
        # On this machine the right token still opens: anybody here could lock everybody out otherwise.
        if wait_s > 0 and not is_loopback(address):
            return _too_many(wait_s)
        scheme, _, token = head.authorizations[0].partition(b" ")
        try:
            held = await self._keyring.scope(token.strip())
        except StoreError as error:
            return problems.of_error(error)
        if held is None or scheme.lower() != b"bearer" or len(head.authorizations) > 1:
            self._failures.count(address, now)
            if wait_s > 0:
                return _too_many(wait_s)
            return _unauthorized("the token is wrong; the right one stands in the server's HOME/token")
        state["scope"] = held
        return None


def _wrong_body(head: Head) -> Response | None:
    if not head.has_body:
        return None
    given = head.media_types[0].decode("latin-1") if head.media_types else ""
    if given != JSON_TYPE and media_type(given) not in {JSON_TYPE, *NDJSON_TYPES}:
        return problems.problem(415, f"the body is {given or 'of no stated type'}; send Content-Type: {JSON_TYPE}")
    encoding = head.encodings[0].decode("latin-1") if head.encodings else "identity"
    if encoding.lower() != "identity":
        return problems.problem(415, f"the body is encoded with {encoding}; send it as it is")
    return None


def media_type(stated: str) -> str:
    """The type in a Content-Type, in lower case; empty if it is not stated, or not stated to be UTF-8."""
    kind, *parameters = (part.strip().lower() for part in stated.split(";"))
    return kind if all(each in {"", "charset=utf-8", 'charset="utf-8"'} for each in parameters) else ""


@functools.lru_cache(maxsize=256)
def _host_name(host: str) -> str | None:
    """The name in a Host header, in lower case and without port and brackets; None for what is no host."""
    match = _HOST.match(host.lower())
    return match and (match["address"] or match["name"])


def allowed_hosts(host: str) -> tuple[frozenset[str], bool]:
    """The names a request may use for a server bound to `host`, and whether any IP address is one.

    A server bound to every address is also called by the machine's name and by its addresses, which need
    no list: rebinding is done to a name.
    """
    names = {"localhost", "127.0.0.1", "::1"}
    if is_loopback(host):
        return frozenset({*names, host.lower()}), False
    if not (_is_address(host) and ipaddress.ip_address(host).is_unspecified):
        return frozenset({*names, host.lower()}), False
    return frozenset({*names, socket.gethostname().lower(), socket.getfqdn().lower()}), True


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _too_many(wait_s: float) -> Response:
    seconds = max(1, round(wait_s))
    return problems.problem(
        429, f"too many wrong tokens came from there; try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )


def _unauthorized(detail: str) -> Response:
    return problems.problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_exposure(host: str, token: str | None, *, no_auth: bool) -> None:
    """`SettingsError` if the server would run programs for everybody on the network."""
    if token is not None:
        checked_token(token, "token")
    elif not no_auth:
        raise SettingsError("token: missing; give one, or --no-auth on a loopback address")
    elif not is_loopback(host):
        raise SettingsError(f"no_auth: refused on {host}; anybody there could run programs here, bind to 127.0.0.1")
