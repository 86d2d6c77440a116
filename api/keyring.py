"""Tokens: the administrator's in the home's file, others as digests in the store; and who has guessed too often."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from pysched.api.scopes import Scope
from pysched.errors import SettingsError, StoreError
from pysched.home import TOKEN_FILE, Home

FILE_LOOK_S = 1.0  # how often the file is looked at, for a new token in it
REFRESH_S = 5.0  # how old what is known of the store's tokens may be: so long a revoked one may still work elsewhere
UNKNOWN_S = 1.0  # how often a token that nobody knows makes us ask the store

_log = structlog.get_logger("api")


class Keyring:
    """The scope of a token.  Belongs to one event loop."""

    def __init__(
        self, token: str | None, stored: Callable[[], list[tuple[dict[str, Any], bytes]]], *, file: Path | None = None
    ) -> None:
        """`token` is the administrator's; None lets everybody in.  `stored` gives tokens and digests, and blocks.
        The token that a `file` holds is replaced with the file."""
        self.open = token is None
        self._admin = None if token is None else digest(token.encode())
        self._stored = stored
        self._file = file
        self._stamp = _stamp(file)
        self._looked = 0.0
        self._known: dict[bytes, Scope] = {}
        self._asked = float("-inf")
        self._asking = asyncio.Lock()

    async def scope(self, token: bytes) -> Scope | None:
        """None for a token that there is not.  `StoreError` if nobody can tell."""
        scope = self.known(token)
        if scope is None and time.monotonic() - self._asked > min(UNKNOWN_S, REFRESH_S):
            await self._ask()
            scope = self._known.get(digest(token))
        return scope

    def known(self, token: bytes) -> Scope | None:
        """The same, without asking the store; None also for a token about which it would have to be asked."""
        given = digest(token)
        self._follow_file()
        if self._admin is not None and hmac.compare_digest(given, self._admin):
            return Scope.ADMIN
        # Found by its digest, of which a guess of the token says nothing, so the time it takes tells nothing either.
        return self._known.get(given) if time.monotonic() - self._asked <= REFRESH_S else None

    def forget(self) -> None:
        """The store's tokens have changed."""
        self._asked = float("-inf")

    async def _ask(self) -> None:
        asked = self._asked
        async with self._asking:
            if self._asked != asked:
                return  # while this one waited, another has asked
            try:
                rows = await asyncio.to_thread(self._stored)
            except StoreError as error:
                # The next one tries again; meanwhile what was known is the best there is.
                _log.warning("tokens cannot be read", error=str(error))
                raise
            self._known = {bytes(key): Scope(row["scope"]) for row, key in rows}
            self._asked = time.monotonic()

    def _follow_file(self) -> None:
        if self._file is None or time.monotonic() - self._looked < FILE_LOOK_S:
            return
        self._looked = time.monotonic()
        stamp = _stamp(self._file)
        if stamp in (self._stamp, None):
            return
        self._stamp = stamp
        try:
            self._admin = digest(read_token(self._file).encode())
            _log.info("the administrator's token was replaced", file=str(self._file))
        except SettingsError as error:
            _log.error("the new token file cannot be used, the old token stays", error=str(error))


class Failures:
    """Who has shown too many wrong tokens: a bucket of tries an address, refilled one by one."""

    def __init__(self, *, burst: int = 20, every_s: float = 1.0, addresses: int = 4096) -> None:
        self._burst = burst
        self._every_s = every_s
        self._addresses = addresses
        self._spent: OrderedDict[str, float] = OrderedDict()  # address → when its bucket is full again

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until this address may try again; 0 if it may now."""
        full_at = self._spent.get(address, now)
        return max(0.0, full_at - now - (self._burst - 1) * self._every_s)

    def count(self, address: str, now: float) -> None:
        """A wrong token came from there."""
        self._spent[address] = max(self._spent.pop(address, now), now) + self._every_s
        while len(self._spent) > self._addresses:
            self._spent.popitem(last=False)


def digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def load_or_create_token(home: Path) -> str:
    """The bearer token in HOME/token, made on first use: 256 random bits, mode 0600.

    Raises `NodeError` if the home cannot be made, `SettingsError` if the file is no private regular file with a
    token in it.  Several processes may call this at once: all get the same token, and none ever sees half a file.
    """
    Home(home).prepare()
    path = home / TOKEN_FILE
    try:
        if not path.is_symlink() and not path.exists():
            _create_token(path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be used as the token file: {error.strerror}") from None
    return read_token(path)


def read_token(path: Path) -> str:
    """The token in a file; `SettingsError` if that is no private regular file with a token in it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be used as the token file: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise SettingsError(f"{path}: is no regular file; remove it, and a new token is made")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise SettingsError(
                f"{path}: others can use it (mode {mode:04o}); run chmod 600, or remove it for a new token"
            )
        token = os.read(descriptor, 4096).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    return checked_token(token, str(path))


def checked_token(token: str, origin: str) -> str:
    """`token`, if a header can carry it; `SettingsError` names `origin` otherwise."""
    if not token or not all("!" <= char <= "~" for char in token):
        raise SettingsError(f"{origin}: holds no token; it must be printable ASCII without spaces")
    return token


def _create_token(path: Path) -> None:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(new_token() + "\n")
            file.flush()
            os.fsync(descriptor)
        # link(2) fails if another process was faster; then its token is everybody's.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """By which a replaced file is known."""
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_ino, status.st_mtime_ns)
