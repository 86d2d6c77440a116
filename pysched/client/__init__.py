"""The HTTP clients: `Client` blocks, `AsyncClient` does not; both find their server by themselves.

::

    calls, events   what to ask and what an answer means; pure
    waiting         what takes several requests; pure
    results         the shapes of answers
    wire            HTTP for the blocking client
    blocking        Client
    asynchronous    AsyncClient, over httpx

Names are imported on first use: a command that prints one answer needs a part of this only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pysched.client.asynchronous import AsyncClient as AsyncClient
    from pysched.client.blocking import Client as Client

__all__ = ["AsyncClient", "Client"]

_HOME = {"AsyncClient": "pysched.client.asynchronous", "Client": "pysched.client.blocking"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pysched.client' has no attribute {name!r}")
