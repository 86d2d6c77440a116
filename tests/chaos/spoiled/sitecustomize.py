"""On PYTHONPATH of the processes that are to have one of the bugs in `tests/chaos/bugs.py`; CHAOS_BUG names it."""

import os

from tests.chaos import bugs

bugs.install(os.environ["CHAOS_BUG"])
