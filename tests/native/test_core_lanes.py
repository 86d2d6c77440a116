"""Order, limits, kill, timeout, withdrawal and shortage."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable

from pysched._core import (
    ALARM,
    CAUSE_CANCEL,
    CAUSE_NONE,
    CAUSE_SHUTDOWN,
    CAUSE_TIMEOUT,
    EXITED,
    STARTED,
    WITHDRAWN,
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
    """The lane wakes while the batch is still being queued, and even then meets the first one first."""
    run = start(lanes=1, workers=1)
    launches = [run.launch("/bin/true", priority=2 if i < 20_000 else 0) for i in range(20_010)]
    run.submit(*launches)
    handles = {launch.handle for launch in launches[20_000:]}
    run.collect(lambda events: sum(event.kind == EXITED for event in events) >= len(handles))
    run.core.withdraw_all()
    run.ends([launch.handle for launch in launches])
    order = [event.handle for event in run.events if event.kind == STARTED]
    assert order[: len(handles)] == sorted(handles)


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
    stubborn = (
        "trap '' TERM; (trap '' TERM; echo $$; while :; do sleep 1000; done) & echo $!; while :; do sleep 1000; done"
    )
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
    draw = random.Random(2)
    launches = [run.launch("/bin/true", rank=draw.randrange(50)) for _ in range(1000)]
    for launch in launches:
        run.submit(launch)  # one by one: a batch would be put in order first
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
    (handle,) = run.submit(run.python(SHORT_OF_DESCRIPTORS, str(run.folder / "fifo")))
    assert code(run.end(handle)) == 0, (run.folder / f"{handle}.err").read_text()
