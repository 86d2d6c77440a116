"""Alarms, poll, wake, validation and the life of a Core."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from pysched._core import (
    ALARM,
    CAUSE_CANCEL,
    EXITED,
    STARTED,
    Core,
    Event,
    Launch,
    Pattern,
)

from .conftest import Gate, Run, alive

Start = Callable[..., Run]


def code(event: Event) -> int:
    assert event.kind == EXITED
    return os.waitstatus_to_exitcode(event.status)


# ---- alarms, poll, wake ---------------------------------------------------------------------------------------------


def test_alarms_ring_in_the_order_of_their_deadlines(start: Start) -> None:
    run = start(lanes=2)
    begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    delays = [0.12, 0.02, 0.08, 0.0, 0.1, 0.04, 0.06]
    for delay in delays:
        run.core.arm(delay, 2**64 - 1 - int(delay * 1000))
    run.collect(lambda events: len(events) == len(delays))
    assert time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begin >= 120_000_000
    assert {event.kind for event in run.events} == {ALARM}
    assert [event.handle for event in run.events] == [2**64 - 1 - int(delay * 1000) for delay in sorted(delays)]


def test_an_attempt_that_ends_takes_its_timer_out_of_the_middle(start: Start) -> None:
    """Timers laid out so that the last one in the heap must rise into the place of the one taken out:

              1.0 s
        10 s         1.1 s
    11 s    12 s   1.2 s           the attempt of 11 s is killed, and later ones come behind
    """
    run = start(lanes=1)

    def attempt(timeout_s: float) -> int:
        (handle,) = run.submit(run.launch("/bin/sleep", "1000", timeout_s=timeout_s))
        run.started(handle)
        return handle

    run.core.arm(1.0, 1)
    attempt(10)
    run.core.arm(1.1, 2)
    victim = attempt(11)
    attempt(12)
    run.core.arm(1.2, 3)
    run.core.kill(victim, 0, CAUSE_CANCEL)
    run.end(victim)
    for _ in range(3):
        attempt(13)
    run.collect(lambda events: sum(event.kind == ALARM for event in events) == 3)
    assert [event.handle for event in run.events if event.kind == ALARM] == [1, 2, 3]
    assert run.core.counters()["timed_out"] == 0


def test_poll_takes_at_most_its_limit_and_keeps_the_rest_in_order(start: Start) -> None:
    run = start()
    for token in range(10):
        run.core.arm(0, token)
    seen: list[int] = []
    while len(seen) < 10:
        batch = run.core.poll(10, limit=3)
        assert len(batch) <= 3
        seen += [event.handle for event in batch]
    assert seen == list(range(10))


def test_poll_returns_empty_after_its_timeout(start: Start) -> None:
    run = start()
    assert run.core.poll(0) == []
    begin = time.monotonic()
    assert run.core.poll(0.05) == []
    assert time.monotonic() - begin >= 0.05


def test_poll_keeps_its_timeout_also_right_after_events(start: Start) -> None:
    """When notes would gather for longer than that."""
    run = start()
    (handle,) = run.submit(run.launch("/bin/true"))
    run.end(handle)
    assert run.core.poll(0) == []


@pytest.mark.parametrize(("waiting", "at_least_s", "below_s"), [(0, 0.0, 0.02), (5, 0.02, 0.05), (200, 0.05, 60.0)])
def test_notes_gather_the_longer_the_more_attempts_wait(
    start: Start, gate: Gate, waiting: int, at_least_s: float, below_s: float
) -> None:
    run = start(lanes=2, workers=1)
    (first,) = run.submit(run.shell(gate.hold))
    run.submit(*(run.launch("/bin/true") for _ in range(waiting)))
    run.started(first)

    def next_but_one_s() -> float:
        """Two alarms, each taken when it rings: from before the first was taken to the second."""
        begin = time.monotonic()
        for token in (1, 2):
            run.core.arm(0.0, token)
            assert [event.handle for event in run.core.poll(None)] == [token]
        return time.monotonic() - begin

    times = [next_but_one_s() for _ in range(20)]
    assert min(times) >= at_least_s
    assert min(times) < below_s  # of each that is not, the machine may be the cause
    gate.open()


def test_a_timeout_beyond_all_times_never_comes(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.launch("/bin/true", timeout_s=1e300, grace_s=1e300))
    assert run.end(handle).status == 0
    assert run.core.kill(handle, 1e300, 200) is False


def test_wake_ends_a_poll_also_one_that_comes_later(start: Start) -> None:
    run = start()
    run.core.wake()
    assert run.core.poll(None) == []
    results: list[list[Event]] = []
    thread = threading.Thread(target=lambda: results.append(run.core.poll(None)))
    thread.start()
    run.core.wake()
    thread.join()
    assert results == [[]]
    assert run.core.poll(0) == []


def test_several_pollers_share_the_events(start: Start) -> None:
    run = start(lanes=2)
    seen: list[int] = []
    lock = threading.Lock()

    def poll() -> None:
        while True:
            events = run.core.poll(None, limit=2)
            with lock:
                seen.extend(event.handle for event in events)
                if len(seen) >= 500:
                    run.core.wake()
                    return

    threads = [threading.Thread(target=poll) for _ in range(4)]
    for thread in threads:
        thread.start()
    for token in range(500):
        run.core.arm(0, token)
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(500))


def test_signal_handlers_run_during_a_poll_in_the_main_thread(start: Start) -> None:
    run = start()

    def raise_it(number: int, frame: object) -> None:
        raise InterruptedError(number)

    previous = signal.signal(signal.SIGALRM, raise_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            run.core.poll(None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_an_idle_core_burns_no_cpu(start: Start) -> None:
    run = start(lanes=4, workers=64)
    (handle,) = run.submit(run.launch("/bin/true"))
    run.end(handle)
    begin = time.process_time_ns()
    assert run.core.poll(1.0) == []
    assert time.process_time_ns() - begin < 5_000_000


# ---- life of a Core -------------------------------------------------------------------------------------------------


def test_close_leaves_running_children_alive(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.launch("/bin/sleep", "1000"))
    pid = run.started(handle).pid
    run.submit(*(run.launch("/bin/sleep", "1000") for _ in range(20)))
    run.collect(lambda events: sum(event.kind == STARTED for event in events) == 8)
    pids = [event.pid for event in run.events]
    run.core.close()
    run.core.close()
    assert pid in pids
    assert all(map(alive, pids))
    run.events.clear()
    run.core = Core(lanes=1, workers=1)  # the old one is freed with its records, its children go on
    assert all(map(alive, pids))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_closed_core_takes_nothing_and_polls_what_is_left() -> None:
    core = Core(lanes=1, workers=1)
    core.arm(0, 5)
    events = core.poll(10)
    core.close()
    assert [event.handle for event in events] == [5]
    assert core.poll(None) == []
    assert core.kill(1, 0, CAUSE_CANCEL) is False
    for call in (lambda: core.submit([]), lambda: core.arm(0, 1), core.withdraw_all, lambda: core.set_workers(2)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_close_ends_a_waiting_poll() -> None:
    core = Core(lanes=1, workers=1)
    results: list[list[Event]] = []
    thread = threading.Thread(target=lambda: results.append(core.poll(None)))
    thread.start()
    core.close()
    thread.join()
    assert results == [[]]


FORK = """
import os, warnings
warnings.simplefilter("ignore")  # of Python, about forking a process with threads: that is what is tried here
from pysched._core import Core
core = Core(lanes=1, workers=1)
pid = os.fork()
if pid == 0:
    try:
        core.poll(0)
    except RuntimeError as error:
        del core
        os._exit(42 if "fork" in str(error) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
assert core.poll(0) == []
"""


def test_a_core_is_of_no_use_in_a_forked_child(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.python(FORK))
    assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()


# ---- validation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"handle": -1}, ValueError, "handle"),
        ({"handle": 2**64}, ValueError, "handle"),
        ({"priority": 3}, ValueError, "priority"),
        ({"rank": 2**31}, ValueError, "rank"),
        ({"sequence": -1}, ValueError, "sequence"),
        ({"sequence": True}, TypeError, "sequence"),
        ({"argv": []}, ValueError, "argv"),
        ({"argv": [b"a\0b"]}, ValueError, "argv.*NUL"),
        ({"argv": ["text"]}, TypeError, "argv"),
        ({"argv": b"bytes"}, TypeError, "argv"),
        ({"candidates": []}, ValueError, "candidates"),
        ({"candidates": [b""]}, ValueError, "candidates"),
        ({"env": [b"no equals sign"]}, ValueError, "env"),
        ({"env": [b"=value"]}, ValueError, "env"),
        ({"env": [b"PYSCHED_LANE=9"]}, ValueError, "env.*PYSCHED_LANE"),
        ({"env": [b"A=\0"]}, ValueError, "env.*NUL"),
        ({"cwd": b""}, ValueError, "cwd"),
        ({"cwd": "/text"}, TypeError, "cwd"),
        ({"stdout": b"\0"}, ValueError, "stdout.*NUL"),
        ({"stderr": b""}, ValueError, "stderr"),
        ({"timeout_s": 0}, ValueError, "timeout_s"),
        ({"timeout_s": float("nan")}, ValueError, "timeout_s"),
        ({"grace_s": -1}, ValueError, "grace_s"),
    ],
)
def test_a_bad_launch_is_refused_by_name(
    start: Start, given: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start().launch("/bin/true", **given)


def test_a_launch_shows_what_it_holds(start: Start) -> None:
    launch = start().launch("/bin/true", "x", handle=2**64 - 1, rank=-(2**31), timeout_s=1.5, grace_s=0)
    assert (launch.handle, launch.priority, launch.rank, launch.sequence) == (2**64 - 1, 1, -(2**31), 2**64 - 1)
    assert (launch.argv, launch.candidates, launch.env) == (
        (b"/bin/true", b"x"),
        (b"/bin/true",),
        (b"PATH=/usr/bin:/bin",),
    )
    assert (launch.timeout_s, launch.grace_s) == (1.5, 0.0)
    assert repr(launch) == "<Launch 18446744073709551615 (b'/bin/true', b'x')>"
    more = start().launch(
        "/bin/true", cwd=b"/tmp", stdout=b"out", stderr=b"err", waited_s=2.5, mark=7, token=8, gpus=500
    )
    assert (more.cwd, more.stdout, more.stderr, more.waited_s) == (b"/tmp", b"out", b"err", 2.5)
    assert (more.mark, more.token, more.gpus, more.warm, more.reuse) == (7, 8, 500, False, 0)
    with pytest.raises(AttributeError):
        launch.handle = 1  # type: ignore[misc]


_FIELDS = (
    "handle", "priority", "rank", "sequence", "argv", "candidates", "env", "cwd", "stdout", "stderr", "timeout_s",
    "grace_s", "waited_s", "mark", "token", "warm", "reuse", "cpus", "memory", "gpus",
)  # fmt: skip


def test_a_launch_of_a_pattern_is_as_one_of_all_its_fields() -> None:
    common = {"argv": [b"a", b"b"], "candidates": [b"/a"], "cwd": b"/", "timeout_s": 2.5, "grace_s": 0.5}
    single = {"handle": 2**64 - 1, "priority": 2, "rank": -(2**31), "sequence": 5, "stdout": b"o", "stderr": b"e"}
    single |= {"waited_s": 1.5, "mark": 2**61 - 1, "token": 2**63, "warm": True, "reuse": 7}
    demand = {"cpus": 1500, "memory": 2**40, "gpus": 500}
    whole = Launch(env=[b"A=1", b"B=2"], **common, **single, **demand)  # type: ignore[arg-type]
    of_pattern = Launch.for_attempt(
        Pattern(env=[b"A=1"], **common), [b"B=2"], **single, demand=tuple(demand.values())  # type: ignore[arg-type]
    )  # fmt: skip
    for field in _FIELDS:
        assert getattr(of_pattern, field) == getattr(whole, field), field


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"env": [b"PYSCHED_LANE=9"]}, ValueError),
        ({"env": [b"A=\0"]}, ValueError),
        ({"handle": -1}, OverflowError),
        ({"priority": 3}, ValueError),
        ({"rank": 2**31}, OverflowError),
        ({"stdout": b""}, ValueError),
        ({"stderr": "text"}, TypeError),
        ({"waited_s": -1.0}, ValueError),
        ({"mark": 2**61}, ValueError),
        ({"demand": (0, 0, 1500)}, ValueError),
        ({"pattern": None}, TypeError),
    ],
)
def test_a_bad_launch_of_a_pattern_is_refused(given: dict[str, object], error: type[Exception]) -> None:
    fields: dict[str, object] = {
        "pattern": Pattern(argv=[b"a"], candidates=[b"/a"], env=[], cwd=b"/"),
        "env": [], "handle": 1, "priority": 0, "rank": 0, "sequence": 0, "stdout": b"o", "stderr": b"e",
        "waited_s": 0.0, "mark": 0, "token": 0,
    }  # fmt: skip
    with pytest.raises(error):
        Launch.for_attempt(**{**fields, **given})  # type: ignore[arg-type]


def test_submit_is_all_or_nothing(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1)
    (first,) = run.submit(run.shell(gate.hold))
    run.started(first)
    with pytest.raises(ValueError, match=f"handle: {first} "):
        run.submit(run.launch("/bin/true"), run.shell("exit 1", handle=first))
    with pytest.raises(ValueError, match="handle: 77 "):
        run.submit(run.launch("/bin/true", handle=77), run.launch("/bin/true", handle=77))
    with pytest.raises(TypeError, match="no Launch"):
        run.core.submit([run.launch("/bin/true"), "x"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="no Launch"):
        run.core.submit([Launch.__new__(Launch)])  # of which nobody said what it is
    assert run.core.counters()["submitted"] == 1
    assert run.core.depths() == (0, 0, 0)
    run.submit(run.launch("/bin/true", handle=77))
    gate.open()
    assert [code(event) for event in run.ends([first, 77])] == [0, 0]


@pytest.mark.parametrize("given", [(0, 1), (257, 1), (1, 0), (1, 1_000_001)])
def test_impossible_numbers_of_lanes_and_workers_are_refused(given: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Core(lanes=given[0], workers=given[1])


def test_an_event_can_be_made_by_hand_for_tests() -> None:
    event = Event(EXITED, 5, pid=7, status=256, step="exec", errno=2)
    assert (event.kind, event.handle, event.pid, event.status, event.step, event.errno) == (
        EXITED,
        5,
        7,
        256,
        "exec",
        2,
    )
    assert "EXITED 5" in repr(event)
