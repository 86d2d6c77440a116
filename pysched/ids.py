"""Ids of tasks."""

from __future__ import annotations

import os
import re
import time

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_ID = re.compile(ID_PATTERN.replace("$", r"\Z"))


def is_valid_id(text: str) -> bool:
    return _ID.match(text) is not None


def new_id() -> str:
    """A UUIDv7 (RFC 9562 § 5.7): 48 bits of Unix milliseconds, then random bits, so ids sort by age."""
    value = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
