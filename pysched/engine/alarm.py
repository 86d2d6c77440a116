"""A wait until a moment of CLOCK_BOOTTIME, which goes on while the machine sleeps; Python's own waits stand still then.

A timer of the kernel, so whoever waits costs nothing until the moment has come.
"""

from __future__ import annotations

import ctypes
import os
import select
import time

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME, timerfd_create(2)

_libc = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    """struct itimerspec"""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("until_s", ctypes.c_long),
        ("until_ns", ctypes.c_long),
    )


class Alarm:
    """One thread waits; any thread may `ring`."""

    def __init__(self) -> None:
        self._timer: int = _libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), f"timerfd: {os.strerror(ctypes.get_errno())}")
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        for descriptor in (self._timer, self._bell):
            self._poll.register(descriptor, select.POLLIN)

    def wait(self, until: float) -> None:
        """Until the clock shows `until`, in seconds, or somebody has rung since the last wait."""
        # All zeros would switch it off; setting it takes away that it has fired before.
        setting = _Setting(0, 0, *divmod(max(1, round(until * 1e9)), 1_000_000_000))
        if _libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(setting), None) != 0:
            raise OSError(ctypes.get_errno(), f"timerfd: {os.strerror(ctypes.get_errno())}")
        if self._bell in dict(self._poll.poll()):
            os.eventfd_read(self._bell)

    def ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        os.close(self._timer)
        os.close(self._bell)
