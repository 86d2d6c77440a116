"""pysched: a job scheduler for ML and system jobs, with a native core and PostgreSQL for the truth.

Public names are imported on first use, so that `import pysched` costs a client command nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pysched._core import Executor as Executor
    from pysched.client import AsyncClient as AsyncClient
    from pysched.client import Client as Client
    from pysched.model import Priority as Priority
    from pysched.model import State as State
    from pysched.task import Task as Task

__all__ = ["AsyncClient", "Client", "Executor", "Priority", "State", "Task", "__version__"]

_HOME = {
    "AsyncClient": "pysched.client.asynchronous",
    "Client": "pysched.client.blocking",
    "Executor": "pysched._core",
    "Priority": "pysched.model",
    "State": "pysched.model",
    "Task": "pysched.task",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("pysched")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pysched' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
