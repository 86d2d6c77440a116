"""The ready queue in use: the native one, or its twin when `PYSCHED_CORE=python`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("PYSCHED_CORE") != "python":
    from pysched._core import ReadyQueue
else:
    from pysched.engine.twin import ReadyQueue

__all__ = ["ReadyQueue"]
