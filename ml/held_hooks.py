"""What Python's own modules do in each forked child, kept back where the zygote knows better.

`threading` clears what other threads left behind, and a zygote has no other thread; `random` seeds its generator by a
path through Python.  Together they are most of what a forked interpreter touches before its next line.  A job registers
them after all, since what it forks itself needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_KEPT_BACK = ("random", "threading")
# Whose hooks have been read: another one might do more.
_KNOWN = (3, 10) <= sys.version_info[:2] <= (3, 14)

_held: list[dict[str, Callable[[], Any]]] = []


def import_without_hooks() -> None:
    """Import them; what has been imported before keeps its hooks, and so costs more."""
    register = os.register_at_fork
    if _KNOWN:
        os.register_at_fork = _hold  # type: ignore[assignment]
    try:
        for module in _KEPT_BACK:
            __import__(module)
    finally:
        os.register_at_fork = register


def _hold(**hooks: Callable[[], Any]) -> None:
    _held.append(hooks)


def are_held() -> bool:
    return bool(_held)


def register() -> None:
    """In a job: for the children that it may fork."""
    for hooks in _held:
        os.register_at_fork(**hooks)
