"""How a command becomes the guard of what it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


def keep(names: Sequence[str], given: Mapping[str, Any]) -> int:
    """Start and keep `scheduler NAME` for each name, with the options that were given; returns the exit code."""
    from pysched.guard import guard
    from pysched.home import Home, chosen_home

    os.environ.update({f"PYSCHED_{name.upper()}": str(value) for name, value in given.items() if value is not None})
    home = chosen_home(None)
    os.environ["PYSCHED_HOME"] = str(home)
    return guard(Home(home), names)
