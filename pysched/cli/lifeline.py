"""A supervised process ends with its supervisor, also when that is killed."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # prctl(2)


def follow_parent(parent_pid: int | None) -> None:
    """Get TERM when the parent dies; at once if it already has.  None: nobody supervises."""
    if parent_pid is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the line above
        os.kill(os.getpid(), signal.SIGTERM)
