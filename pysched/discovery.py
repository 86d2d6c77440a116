"""Where a client finds its server, and the token that lets it in.

A client finds its server without being told: the argument, else `PYSCHED_URL`, else the address that the
home's server left in HOME/api.json, else http://127.0.0.1:8321.  So too the token: the argument, else
`PYSCHED_TOKEN`, else HOME/token; but that file's token only goes to loopback, to the address in
HOME/api.json, or where the home was named with the address, lest a wrong URL gives it away.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pysched.errors import SettingsError
from pysched.home import ADDRESS_FILE, TOKEN_FILE, default_home

DEFAULT_URL = "http://127.0.0.1:8321"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how to be let in."""

    url: str  # without a slash at the end
    token: str | None = field(repr=False)


def discover(*, url: str | None = None, token: str | None = None, home: str | Path | None = None) -> Address:
    """The server to talk to, from what was given, the environment and the home folder (see the module's text)."""
    named_home = home or os.environ.get("PYSCHED_HOME")
    folder = Path(named_home) if named_home else default_home()
    url = url or os.environ.get("PYSCHED_URL")
    own_url = _published_url(folder)
    target = (url or own_url or DEFAULT_URL).rstrip("/")
    try:
        parts = urlsplit(target)
        known = parts.scheme in {"http", "https"} and parts.hostname and (parts.port or True)
    except ValueError:
        known = False
    if not known:
        raise SettingsError(f"url: {target!r} is no address of a server; write http://HOST:PORT")
    token = token or os.environ.get("PYSCHED_TOKEN") or None
    if token is None and (named_home or target == own_url or is_loopback(parts.hostname)):
        token = _stored_token(folder)
    if token is not None and not all("!" <= char <= "~" for char in token):
        raise SettingsError(
            "token: holds a character that no header can carry; it must be printable ASCII without spaces"
        )
    return Address(target, token)


def _published_url(home: Path) -> str | None:
    try:
        url = json.loads((home / ADDRESS_FILE).read_text())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no server has run here
    return url if isinstance(url, str) else None


def _stored_token(home: Path) -> str | None:
    try:
        return (home / TOKEN_FILE).read_text().strip() or None
    except (OSError, ValueError):
        return None  # the server will say that one is needed


def is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"
