"""Secrets in a task's environment are for the job alone: whoever looks at the task sees `***`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_SECRET = re.compile(
    r"PASS|PWD|SECRET|TOKEN|KEY|CREDENTIAL|AUTH|PRIVATE|COOKIE|SESSION|SIGNATURE|WEBHOOK|DSN|(^|_)(PAT|SAS|PIN)(_|$)",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^/?#\s:@]*):[^/?#\s]*@", re.IGNORECASE)


def masked(task: dict[str, Any]) -> dict[str, Any]:
    """A task as `Store.get` gives it, without its secrets."""
    content = task["task"]
    if "env" not in content:
        return task
    return {**task, "task": {**content, "env": masked_env(content["env"])}}


def masked_env(env: Mapping[str, str]) -> dict[str, str]:
    return {name: MASK if _SECRET.search(name) else _without_password(value) for name, value in env.items()}


def _without_password(value: str) -> str:
    return _URL_PASSWORD.sub(rf"\g<before>:{MASK}@", value)
