"""Runs the control plane: one uvicorn server on a socket that is bound before anything is promised."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import secrets
import signal
import socket
import time
from email.utils import formatdate
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from pysched.api.app import create_app
from pysched.api.backend import Backend
from pysched.api.context import FindLogs
from pysched.api.keyring import load_or_create_token
from pysched.api.protocol import Protocol
from pysched.errors import PyschedError
from pysched.home import ADDRESS_FILE, TOKEN_FILE
from pysched.listening import RELOAD, Place
from pysched.settings import Settings

GRACE_S = 10  # for requests under way when the server is told to stop
BACKLOG = 2048
FILES = 65_536
SPARE_FILES = 256  # for logs, the database and all else that is no connection


def serve(store: Backend, settings: Settings, *, log_files: FindLogs | None = None, place: Place | None = None) -> None:
    """Serve until TERM or INT; blocks, and must be called from the main thread.  `store` is open, and stays so.

    Once requests are answered, `listening on URL` is printed and HOME/api.json holds the URL and this
    process's id.  The first TERM or INT lets requests under way finish (at most 10 s), a second ends the process
    at once.  RELOAD is a TERM after which another server follows: HOME/api.json stays.

    `log_files` is `create_app`'s; `place`, if there is one, keeps the socket for the next server.  Raises
    `SettingsError`, or `PyschedError` if the address cannot be had.
    """
    token, file = None, None
    if not settings.no_auth:
        file = None if settings.token else settings.home / TOKEN_FILE
        token = settings.token or load_or_create_token(settings.home)
    app = create_app(store, settings, token=token, token_file=file, log_files=log_files)
    with _listener(settings.host, settings.port, place) as listener:
        config = configuration(app)
        address = _Address(settings.home, _url(settings.host, listener.getsockname()[1]))
        server = _Server(config, address)
        signal.signal(RELOAD, server.handle_reload)
        try:
            server.run(sockets=[listener])
        finally:
            address.withdraw()


def configuration(app: FastAPI) -> uvicorn.Config:
    """How uvicorn serves `app`; raises the limit of open files, since each connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(most, FILES) if most != resource.RLIM_INFINITY else FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return uvicorn.Config(
        app,
        http=Protocol,
        backlog=BACKLOG,
        access_log=False,
        log_config=None,
        log_level="error",  # of what clients send that is no HTTP nobody need read
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=max(files - SPARE_FILES, SPARE_FILES),
    )


class _Address:
    """HOME/api.json, by which clients find the server."""

    def __init__(self, home: Path, url: str) -> None:
        self.url = url
        self.stays = False  # another server is about to follow
        self._path = home / ADDRESS_FILE
        self._content = json.dumps({"url": url, "pid": os.getpid()}) + "\n"

    def publish(self) -> None:
        temporary = self._path.with_name(f".{self._path.name}-{secrets.token_hex(8)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(self._content)
            temporary.replace(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise PyschedError(f"{self._path}: cannot be written: {error.strerror}; check the home folder") from None

    def withdraw(self) -> None:
        """Remove the file, unless another server has put its own in place since, or soon will."""
        with contextlib.suppress(OSError):
            if not self.stays and self._path.read_text() == self._content:
                self._path.unlink()


class _Dated(ServerState):
    """Makes the date for responses when one needs it, once a second at most."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._date: list[tuple[bytes, bytes]] = []

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, [(b"date", formatdate(now, usegmt=True).encode())]
        return self._date

    @default_headers.setter
    def default_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        pass


class _Server(uvicorn.Server):
    """Sleeps while nothing comes: the inherited one looks up ten times a second."""

    def __init__(self, config: uvicorn.Config, address: _Address) -> None:
        super().__init__(config)
        self.server_state = _Dated()
        self._address = address
        self._told: asyncio.Event | None = None  # to stop
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._address.publish()
            print(f"listening on {self._address.url}", flush=True)

    async def main_loop(self) -> None:
        self._told, self._loop = asyncio.Event(), asyncio.get_running_loop()
        if not self.should_exit:  # a signal that came before this line found nobody to tell
            await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.context.end_streams()  # type: ignore[union-attr]
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not the inherited one: that would end the process by the signal after a clean stop."""
        if self.should_exit and not self._address.stays:
            # At once means now: a thread may sit in the database for a while yet.  Nothing is lost, since what
            # was answered is committed, and what was not the client sends again under the same id.
            self._address.withdraw()
            os._exit(128 + sig)
        self._address.stays = False
        self._end()

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            self._address.stays = True
            self._end()

    def _end(self) -> None:
        self.should_exit = True
        if self._told is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)


def _listener(host: str, port: int, place: Place | None) -> socket.socket:
    """The socket that was kept for this address, or a new one, of which a copy is kept."""
    address = f"{host}:{port}"
    kept = None if place is None else place.kept(address)
    listener = kept or _bound_socket(host, port)
    if place is not None:
        place.keep(listener, address)
    return listener


def _bound_socket(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise PyschedError(f"host: {host} is no address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)  # now, so that a second server on the port fails here and not later
    except OSError as error:
        listener.close()
        hint = "is another server running? choose another --port, or 0 for a free one"
        raise PyschedError(f"cannot listen on {host}:{port}: {error.strerror}; {hint}") from None
    return listener


def _url(host: str, port: int) -> str:
    """Where clients on this machine reach a server bound to `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
