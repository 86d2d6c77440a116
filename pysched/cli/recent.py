"""What this user saw and submitted last, so that `%3` and `last` mean something: a small file of the user's own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import platformdirs

_IDS_KEPT = 10_000
What = Literal["listed", "submitted"]


def remember(url: str, what: What, ids: Sequence[str]) -> None:
    """Keep `ids` for later commands; a folder that cannot be written costs the convenience and no more."""
    path = _path()
    known = _read(path)
    known.setdefault(url, {})[what] = list(ids[:_IDS_KEPT])
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(json.dumps(known))
        os.replace(temporary, path)


def recall(url: str, what: What) -> list[str]:
    """The ids of the last listing (a row each), or of the last submission; empty if there was none."""
    ids = _read(_path()).get(url, {}).get(what, [])
    return [each for each in ids if isinstance(each, str)]


def _path() -> Path:
    return Path(platformdirs.user_cache_dir("pysched", appauthor=False)) / "recent.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {url: kept for url, kept in known.items() if isinstance(kept, dict)} if isinstance(known, dict) else {}
