"""Whether the disks have room for what attempts leave behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

RESERVE_BYTES = 16 * 2**20  # for the `.done` files of what runs already, and for our own
RESERVE_SHARE = 0.05  # of a small file system, where that would be too much


class Disks:
    """The file systems of some folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def full(self) -> str | None:
        """The first folder whose file system has no room, or None.  A quota shows only when a write fails."""
        for folder in self._folders:
            try:
                room = os.statvfs(folder)
            except OSError:  # gone, or it does not answer: whoever writes there will tell
                continue
            reserve = min(RESERVE_BYTES / room.f_frsize, RESERVE_SHARE * room.f_blocks)
            if room.f_bavail < reserve or (room.f_files > 0 and room.f_favail == 0):
                return str(folder)
        return None
