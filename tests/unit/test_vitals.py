"""What /proc says of the machine and of this process."""

from __future__ import annotations

import pytest

from pysched.vitals import Vitals, ticks


@pytest.mark.parametrize(
    ("stat", "busy", "every"),
    [
        (b"cpu  1 2 4 8 16 32 64 128 1 2\ncpu0 9 9 9 9\nintr 1", 231, 255),  # guests are in the first two
        (b"cpu 1 2 4 8\n", 7, 15),  # an old kernel
    ],
)
def test_ticks(stat: bytes, busy: int, every: int) -> None:
    assert ticks(stat) == (busy, every)


def test_both_grow_with_use() -> None:
    vitals = Vitals()
    busy, every = vitals.cpu_ticks()
    assert 0 < busy < every
    small = vitals.rss_bytes()
    assert small > 2**20
    block = bytearray(b"x") * (64 * 2**20)
    assert vitals.rss_bytes() > small + 32 * 2**20
    assert len(block) == 64 * 2**20
    later_busy, later_every = vitals.cpu_ticks()
    while later_every == every:
        later_busy, later_every = vitals.cpu_ticks()
    assert later_busy >= busy
    vitals.close()
