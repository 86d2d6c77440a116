"""Order, limits, kill, withdrawal, shortage, events and the life of a Core."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from pysched._core import (
    ALARM,
    CAUSE_CANCEL,
    CAUSE_NONE,
    CAUSE_SHUTDOWN,
    CAUSE_TIMEOUT,
    EXITED,
    STARTED,
    WITHDRAWN,
    Core,
    Event,
    Launch,
)

from .conftest import Gate, Run, alive, process_state, wait_until

Start = Callable[..., Run]


def code(event: Event) -> int:
    assert event.kind == EXITED
    return os.waitstatus_to_exitcode(event.status)


# ---- order and limits -----------------------------------------------------------------------------------------------


def test_one_lane_and_one_worker_start_in_exactly_the_order_of_the_key(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1)
    (first,) = run.submit(run.shell(gate.hold))
    run.started(first)
    draw = random.Random(1)
    launches = [
        run.launch("/bin/true", priority=draw.randrange(3), rank=draw.choice([0, 0, 0, -5, 7])) for _ in range(300)
    ]
    draw.shuffle(launches)
    for launch in launches[:100]:
        run.submit(launch)
    run.submit(*launches[100:])
    assert sum(run.core.depths()) == 300
    gate.open()
    run.ends([launch.handle for launch in launches])
    order = [event.handle for event in run.events if event.kind == STARTED][1:]
    expected = sorted(launches, key=lambda launch: (launch.priority, -launch.rank, launch.sequence))
    assert order == [launch.handle for launch in expected]


def test_a_batch_given_to_an_idle_core_starts_in_order_too(start: Start) -> None:
    run = start(lanes=1, workers=1)
    launches = [run.launch("/bin/true", priority=2 - i % 3) for i in range(30)]
    run.submit(*launches)
    run.ends([launch.handle for launch in launches])
    order = [event.handle for event in run.events if event.kind == STARTED]
    assert order == [launch.handle for launch in sorted(launches, key=lambda launch: launch.priority)]


def test_512_run_at_once_on_two_lanes(start: Start, gate: Gate) -> None:
    run = start(lanes=2, workers=512)
    handles = run.submit(*(run.shell(gate.hold) for _ in range(520)))
    run.collect(lambda events: sum(event.kind == STARTED for event in events) == 512)
    assert run.core.running == 512
    assert sum(run.core.depths()) == 8
    assert {event.lane for event in run.events} == {0, 1}
    gate.open()
    assert {code(event) for event in run.ends(handles)} == {0}
    assert run.core.running == 0


def test_the_limit_can_change_while_attempts_run(start: Start, gate: Gate) -> None:
    run = start(lanes=2, workers=1)
    handles = run.submit(*(run.shell(gate.hold) for _ in range(10)))

    def started(events: list[Event]) -> int:
        return sum(event.kind == STARTED for event in events)

    run.collect(lambda events: started(events) == 1)
    run.core.set_workers(5)
    run.collect(lambda events: started(events) == 5)
    assert run.core.workers == run.core.running == 5
    run.core.set_workers(2)
    victim = next(event.handle for event in run.events)
    assert run.core.kill(victim, 0, CAUSE_CANCEL)
    run.end(victim)
    wait_until(lambda: run.core.running == 4, "the slot of the killed attempt")
    assert sum(run.core.depths()) == 5
    gate.open()
    run.ends(handles)


def test_20_000_tickets_of_several_threads_are_each_delivered_once(start: Start) -> None:
    """Most are killed right after they were queued, while lanes take them; one in ten runs or fails in the spawn."""
    run = start(lanes=2, workers=16)
    threads_count, each, batch = 4, 5000, 100

    def launch(handle: int) -> Launch:
        path = b"/bin/true" if handle % 20 == 0 else b"/nowhere"
        return run.launch("true", handle=handle, priority=handle % 3, rank=handle % 2, candidates=[path])

    launches = [[launch(thread * each + i + 1) for i in range(each)] for thread in range(threads_count)]
    barrier = threading.Barrier(threads_count)

    def submit(mine: list[Launch]) -> None:
        barrier.wait()
        for i in range(0, each, batch):
            run.core.submit(mine[i : i + batch])
            for victim in mine[i : i + batch]:
                if victim.handle % 10:
                    run.core.kill(victim.handle, 0, CAUSE_CANCEL)

    threads = [threading.Thread(target=submit, args=(mine,)) for mine in launches]
    for thread in threads:
        thread.start()
    ends = run.ends(range(1, threads_count * each + 1))
    for thread in threads:
        thread.join()
    delivered = [event.handle for event in run.events if event.kind != STARTED]
    assert len(delivered) == len(set(delivered)) == len(ends) == 20_000
    open_now: set[int] = set()
    for event in run.events:
        if event.kind == STARTED:
            open_now.add(event.handle)
        elif event.kind == EXITED:
            open_now.remove(event.handle)  # KeyError: EXITED before STARTED
    assert not open_now
    counters = run.core.counters()
    assert counters["submitted"] == 20_000
    assert counters["exited"] + counters["spawn_failed"] + counters["withdrawn"] == 20_000
    assert (run.core.running, run.core.depths()) == (0, (0, 0, 0))


# ---- kill and timeout -----------------------------------------------------------------------------------------------


def test_a_timeout_sends_term_and_then_kill_to_the_whole_group(start: Start) -> None:
    run = start()
    stubborn = "trap '' TERM; (trap '' TERM; echo $$; while :; do sleep 1000; done) & echo $!; while :; do sleep 1000; done"
    (handle,) = run.submit(run.shell(stubborn, timeout_s=0.3, grace_s=0.3))
    event = run.end(handle)
    assert (code(event), event.cause) == (-signal.SIGKILL, CAUSE_TIMEOUT)
    assert event.run_ns >= 600_000_000
    for pid in map(int, run.output(handle).split()):
        wait_until(lambda pid=pid: not alive(pid), f"the end of {pid}")  # type: ignore[misc]
    assert run.core.counters()["timed_out"] == 1
    assert run.core.counters()["killed"] == 0


def test_a_child_that_heeds_term_ends_within_its_grace(start: Start) -> None:
    run = start()
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    (handle,) = run.submit(run.shell(script, timeout_s=0.5, grace_s=60))
    event = run.end(handle)
    assert (code(event), event.cause) == (3, CAUSE_TIMEOUT)
    assert run.output(handle) == "ready\nbye\n"


def test_an_attempt_that_ends_in_time_meets_no_timer(start: Start) -> None:
    run = start(lanes=1, workers=4)
    handles = run.submit(*(run.launch("/bin/true", timeout_s=0.5 + i % 7, grace_s=0) for i in range(50)))
    assert {(code(event), event.cause) for event in run.ends(handles)} == {(0, CAUSE_NONE)}
    run.core.arm(0.6, 1)  # past the first timeouts
    run.collect(lambda events: any(event.kind == ALARM for event in events))
    assert run.core.counters()["timed_out"] == 0


def test_kill_ends_a_running_attempt_by_term_also_a_stopped_one(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.shell("kill -STOP $$; sleep 1000"))
    pid = run.started(handle).pid
    wait_until(lambda: process_state(pid) == "T", "the stop")
    assert run.core.kill(handle, 1000, CAUSE_CANCEL)
    event = run.end(handle)
    assert (code(event), event.cause) == (-signal.SIGTERM, CAUSE_CANCEL)
    assert run.core.counters()["killed"] == 1


def test_a_second_kill_without_grace_ends_what_ignores_term_and_the_first_cause_stays(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.shell("trap '' TERM; echo ready; while :; do sleep 1000; done"))
    wait_until(lambda: run.started(handle) and run.output(handle) == "ready\n", "the trap")
    assert run.core.kill(handle, 1000, CAUSE_CANCEL)
    assert run.core.kill(handle, 0, CAUSE_SHUTDOWN)
    event = run.end(handle)
    assert (code(event), event.cause) == (-signal.SIGKILL, CAUSE_CANCEL)
    assert run.core.counters()["killed"] == 1


def test_kill_of_an_unknown_or_ended_handle_says_so(start: Start) -> None:
    run = start()
    assert not run.core.kill(999, 0, CAUSE_CANCEL)
    (handle,) = run.submit(run.launch("/bin/true"))
    run.end(handle)
    assert not run.core.kill(handle, 0, CAUSE_CANCEL)


def test_kill_of_a_queued_attempt_withdraws_it(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1)
    first, second, third = run.submit(run.shell(gate.hold), run.launch("/bin/true"), run.launch("/bin/true"))
    run.started(first)
    assert run.core.depths() == (0, 2, 0)
    assert run.core.kill(second, 5, CAUSE_CANCEL)
    event = run.end(second)
    assert (event.kind, event.cause, event.pid) == (WITHDRAWN, CAUSE_CANCEL, 0)
    assert event.ended_ns >= event.queued_ns > 0
    assert run.core.depths() == (0, 1, 0)
    assert not run.core.kill(second, 5, CAUSE_CANCEL)
    run.submit(run.launch("/bin/true", handle=second))  # the handle is free again
    gate.open()
    assert [code(event) for event in run.ends([first, third])] == [0, 0]
    run.collect(lambda events: any(e.kind == EXITED and e.handle == second for e in events))


def test_withdrawn_tickets_are_swept_out_and_the_others_keep_their_order(start: Start, gate: Gate) -> None:
    run = start(lanes=1, workers=1)
    (first,) = run.submit(run.shell(gate.hold))
    run.started(first)
    launches = [run.launch("/bin/true", rank=i % 3) for i in range(1000)]
    run.submit(*launches)
    stay = {launch.handle for launch in launches[::10]}
    for launch in launches:
        if launch.handle not in stay:
            assert run.core.kill(launch.handle, 0, CAUSE_CANCEL)
    assert sum(run.core.depths()) == len(stay)
    gate.open()
    run.ends([launch.handle for launch in launches])
    order = [event.handle for event in run.events if event.kind == STARTED][1:]
    expected = sorted(launches[::10], key=lambda launch: (-launch.rank, launch.sequence))
    assert order == [launch.handle for launch in expected]
    assert run.core.counters()["withdrawn"] == 900


def test_withdraw_all_empties_the_queue_and_leaves_what_runs(start: Start, gate: Gate) -> None:
    run = start(lanes=2, workers=2)
    running = run.submit(run.shell(gate.hold), run.shell(gate.hold))
    for handle in running:
        run.started(handle)
    waiting = run.submit(*(run.launch("/bin/true", priority=i % 3, rank=i % 2) for i in range(100)))
    assert run.core.kill(waiting[5], 0, CAUSE_CANCEL)
    assert run.core.withdraw_all() == 99
    assert run.core.withdraw_all() == 0
    assert run.core.depths() == (0, 0, 0)
    ends = run.ends(waiting)
    assert {event.kind for event in ends} == {WITHDRAWN}
    assert [event.cause for event in ends].count(CAUSE_SHUTDOWN) == 99
    assert run.core.running == 2
    gate.open()
    assert [code(event) for event in run.ends(running)] == [0, 0]


# ---- shortage -------------------------------------------------------------------------------------------------------

SHORT_OF_DESCRIPTORS = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from pysched._core import Core, Launch
core = Core(lanes=2, workers=64)
fifo = sys.argv[1]
os.mkfifo(fifo)
keep = os.open(fifo, os.O_RDWR)
core.submit([Launch(handle=i, priority=0, rank=0, sequence=i, argv=[b"sh", b"-c", b"read line < " + fifo.encode()],
    candidates=[b"/bin/sh"], env=[], cwd=b"/", stdout=b"/dev/null", stderr=b"/dev/null") for i in range(64)])
events = []
while not core.counters()["backed_off"]:
    events += core.poll(0.01)
assert core.running < 64, core.running
os.write(keep, b"\\n" * 64)
while sum(e.kind != 1 for e in events) < 64:
    events += core.poll(1)
assert {(e.kind, e.status) for e in events if e.kind != 1} == {(2, 0)}, events
assert core.running == 0 and core.counters()["spawn_failed"] == 0
"""


def test_shortage_of_descriptors_slows_but_fails_nothing(start: Start) -> None:
    run = start()
    (handle,) = run.submit(run.launch(sys.executable, "-c", SHORT_OF_DESCRIPTORS, str(run.folder / "fifo")))
    assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()


def test_a_core_that_does_not_fit_is_an_error_and_leaves_no_descriptor() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="lower `lanes`"):
            Core(lanes=100, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sorted(os.listdir("/proc/self/fd")) == before


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


def test_a_core_is_of_no_use_in_a_forked_child(start: Start) -> None:
    """In a process of its own: forking one that runs threads is what the rule is about."""
    run = start()
    script = (
        "import os, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from pysched._core import Core\n"
        "core = Core(lanes=1, workers=1)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        core.poll(0)\n"
        "    except RuntimeError as error:\n"
        "        del core\n"
        "        os._exit(42 if 'fork' in str(error) else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42\n"
        "assert core.poll(0) == []\n"
    )
    (handle,) = run.submit(run.launch(sys.executable, "-c", script))
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
    assert (launch.argv, launch.candidates, launch.env) == ((b"/bin/true", b"x"), (b"/bin/true",), (b"PATH=/usr/bin:/bin",))
    assert (launch.timeout_s, launch.grace_s) == (1.5, 0.0)
    with pytest.raises(AttributeError):
        launch.handle = 1  # type: ignore[misc]


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
    assert (event.kind, event.handle, event.pid, event.status, event.step, event.errno) == (EXITED, 5, 7, 256, "exec", 2)
    assert "EXITED 5" in repr(event)
