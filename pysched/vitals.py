"""How busy the machine is, and how large this process: two small reads of /proc, since somebody looks every second."""

from __future__ import annotations

import os

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Vitals:
    """Open files, for one thread at a time."""

    def __init__(self) -> None:
        self._stat = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._stat)
        os.close(self._statm)

    def cpu_ticks(self) -> tuple[int, int]:
        """(busy, all) of all processors since the machine started."""
        return ticks(os.pread(self._stat, 1024, 0))

    def rss_bytes(self) -> int:
        """Resident memory of this process."""
        return int(os.pread(self._statm, 256, 0).split()[1]) * _PAGE_BYTES


def ticks(stat: bytes) -> tuple[int, int]:
    """(busy, all) from the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal; guests,
    which follow, are in user and nice, too."""
    counts = [int(count) for count in stat[: stat.index(b"\n")].split()[1:9]]
    every = sum(counts)
    return every - sum(counts[3:5]), every
