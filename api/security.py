"""Who may talk to the control plane.

Whoever can submit a task can run any program, so every request passes this gate before anything is
routed or a byte of its body is read:

* the `Host` must be a name of this server: a page that rebinds its own name to 127.0.0.1 is refused;
* a foreign `Origin` is refused on every method: no web page of another site speaks to the scheduler;
* the bearer token must be right, except that `/health` may be asked without one; what it may do is for routes to say;
* a body must be JSON, which an HTML form cannot send.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time

import structlog
from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pysched.api import problems
from pysched.api import scopes as access
from pysched.api.keyring import Failures, Keyring, checked_token
from pysched.errors import SettingsError, StoreError

OPEN_PATHS = frozenset({"/health"})  # answered without a token
JSON_TYPE = "application/json"
NDJSON_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::[0-9]{1,5})?\Z")
_log = structlog.get_logger("api")


class Gate:
    """ASGI middleware; the outermost, so its headers are on every answer and its 500 is the last resort."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, hosts: frozenset[str], any_address: bool) -> None:
        self._app = app
        self._keyring = keyring
        self._failures = Failures()
        self._hosts = hosts
        self._any_address = any_address  # whether a Host that is an IP address is ours, whichever it is

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan; WebSockets are switched off in the server
            await self._app(scope, receive, send)
            return
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        refusal = await self._refusal(scope, headers)
        if refusal is not None:
            if _has_body(headers):
                refusal.headers["Connection"] = "close"  # rather than read what nobody wants
            await refusal(scope, receive, send_safely)
            return
        try:
            await self._app(scope, receive, send_safely)
        except Exception:
            _log.exception("request failed", method=scope["method"], path=scope["path"])
            if started:
                raise  # too late for words: the server closes the connection
            await problems.internal()(scope, receive, send_safely)

    async def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        return (
            self._wrong_host(headers)
            or self._wrong_origin(headers)
            or await self._wrong_token(scope, headers)
            or _wrong_body(headers)
        )

    def _wrong_host(self, headers: Headers) -> Response | None:
        given = headers.getlist("host")
        name = _host_name(given[0]) if len(given) == 1 else None
        if name is None:
            return problems.problem(400, "the request needs one Host header with a host name")
        if name in self._hosts or (self._any_address and _is_address(name)):
            return None
        return problems.problem(421, f"this server is not called {name}; use {', '.join(sorted(self._hosts))}")

    def _wrong_origin(self, headers: Headers) -> Response | None:
        own = headers["host"].lower()
        if all(origin.lower() in {f"http://{own}", f"https://{own}"} for origin in headers.getlist("origin")):
            return None
        return problems.problem(403, "a page of another origin may not speak to this server")

    async def _wrong_token(self, scope: Scope, headers: Headers) -> Response | None:
        """Sets `scope` in the request's state: what its token may do, None without one."""
        state = scope.setdefault("state", {})
        state["scope"] = access.Scope.ADMIN if self._keyring.open else None
        if self._keyring.open:
            return None
        given = headers.getlist("authorization")
        if not given:
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
        scheme, _, token = given[0].partition(" ")
        try:
            held = await self._keyring.scope(token.strip())
        except StoreError as error:
            return problems.of_error(error)
        if held is None or scheme.lower() != "bearer" or len(given) > 1:
            self._failures.count(address, now)
            if wait_s > 0:
                return _too_many(wait_s)
            return _unauthorized("the token is wrong; the right one stands in the server's HOME/token")
        state["scope"] = held
        return None


def _wrong_body(headers: Headers) -> Response | None:
    if not _has_body(headers):
        return None
    if media_type(headers) not in {JSON_TYPE, *NDJSON_TYPES}:
        given = headers.get("content-type")
        return problems.problem(415, f"the body is {given or 'of no stated type'}; send Content-Type: {JSON_TYPE}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        return problems.problem(415, f"the body is encoded with {headers['content-encoding']}; send it as it is")
    return None


def media_type(headers: Headers) -> str:
    """The body's type in lower case; empty if it is not stated, or not stated to be UTF-8."""
    kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
    return kind if all(each in {"", "charset=utf-8", 'charset="utf-8"'} for each in parameters) else ""


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


def is_loopback(host: str) -> bool:
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _too_many(wait_s: float) -> Response:
    seconds = max(1, round(wait_s))
    return problems.problem(
        429, f"too many wrong tokens came from there; try again in {seconds} s", headers={"Retry-After": str(seconds)}
    )


def _unauthorized(detail: str) -> Response:
    return problems.problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _host_name(host: str) -> str | None:
    """The name in a Host header, in lower case and without port and brackets; None for what is no host."""
    match = _HOST.match(host.lower())
    return match and (match["address"] or match["name"])


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
