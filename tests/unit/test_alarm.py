"""A wait on CLOCK_BOOTTIME, which another thread can end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pysched.engine.alarm import Alarm

FAR_S = 3_600.0


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    alarm = Alarm()
    yield alarm
    alarm.close()


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("ahead_s", [0.05, 0.0, -FAR_S])
def test_it_waits_until_the_moment_has_come(alarm: Alarm, ahead_s: float) -> None:
    until = now() + ahead_s
    alarm.wait(until)
    assert now() >= until - 1e-6


def test_a_moment_before_the_machine_started_has_come(alarm: Alarm) -> None:
    alarm.wait(-1.0)
    alarm.wait(0.0)


def test_an_alarm_that_went_off_waits_again(alarm: Alarm) -> None:
    alarm.wait(now())
    until = now() + 0.05
    alarm.wait(until)
    assert now() >= until - 1e-6


def test_a_ring_ends_one_wait(alarm: Alarm) -> None:
    alarm.ring()
    alarm.wait(now() + FAR_S)
    waiter = threading.Thread(target=alarm.wait, args=(now() + FAR_S,), daemon=True)
    waiter.start()
    alarm.ring()
    waiter.join(60)
    assert not waiter.is_alive()
