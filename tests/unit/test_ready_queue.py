"""One conformance suite for the ready queue and its Python twin."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pysched import _core
from pysched.engine import twin

IMPLEMENTATIONS = pytest.mark.parametrize("queue_type", [_core.ReadyQueue, twin.ReadyQueue], ids=["native", "python"])
QueueType = Any  # type of either class; they share no base on purpose


@IMPLEMENTATIONS
def test_priority_then_rank_then_sequence(queue_type: QueueType) -> None:
    queue = queue_type(1)
    keys = [(p, r, s * 10 + p) for p in range(3) for r in (0, -7, 2**31 - 1, -(2**31)) for s in range(5)]
    for handle, (priority, rank, sequence) in enumerate(reversed(keys)):
        queue.push(priority, rank, sequence, len(keys) - 1 - handle)
    order = [queue.pop(0) for _ in keys]
    assert order == sorted(range(len(keys)), key=lambda i: (keys[i][0], -keys[i][1], keys[i][2]))
    assert queue.pop(0) is None


@IMPLEMENTATIONS
def test_a_lane_takes_its_own_then_the_others_in_turn_then_the_next_class(queue_type: QueueType) -> None:
    queue = queue_type(4)
    for lane in range(4):
        for priority in range(3):
            queue.push(priority, 0, lane, priority * 10 + lane, lane=lane)
    assert [queue.pop(2) for _ in range(13)] == [2, 3, 0, 1, 12, 13, 10, 11, 22, 23, 20, 21, None]


@IMPLEMENTATIONS
def test_balanced_pushes_go_where_fewer_wait(queue_type: QueueType) -> None:
    queue = queue_type(2)
    for handle in range(10):
        queue.push(1, 0, handle, handle, lane=0)
    for handle in range(10, 20):
        queue.push(1, 0, handle, handle)  # all to lane 1
    assert [queue.pop(1) for _ in range(10)] == list(range(10, 20))


@IMPLEMENTATIONS
def test_depths_and_length(queue_type: QueueType) -> None:
    queue = queue_type(3)
    for i in range(100):
        queue.push(i % 3, 0, i, i)
    assert queue.depths() == (34, 33, 33)
    assert len(queue) == 100
    queue.pop(1)
    assert queue.depths() == (33, 33, 33)


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    "given",
    [(3, 0, 0, 0), (-1, 0, 0, 0), (0, 2**31, 0, 0), (0, 0, -1, 0), (0, 0, 2**64, 0), (0, 0, 0, 2**64), (0, 0, 0, 0, 2)],
)
def test_numbers_out_of_range_are_refused(queue_type: QueueType, given: tuple[int, ...]) -> None:
    queue = queue_type(2)
    with pytest.raises(ValueError, match="out of range"):
        queue.push(*given)
    assert len(queue) == 0


@IMPLEMENTATIONS
def test_lanes_out_of_range_are_refused(queue_type: QueueType) -> None:
    for lanes in (0, 257):
        with pytest.raises(ValueError, match="lanes"):
            queue_type(lanes)
    with pytest.raises(ValueError, match="lane"):
        queue_type(2).pop(2)
    with pytest.raises(TypeError, match="no int"):
        queue_type(2).push(0, 0, "1", 0)


@IMPLEMENTATIONS
def test_numbers_at_the_ends_of_their_range(queue_type: QueueType) -> None:
    queue = queue_type(256)
    queue.push(2, -(2**31), 2**64 - 1, 2**64 - 1, lane=255)
    queue.push(2, 2**31 - 1, 2**64 - 1, 0, lane=255)
    assert [queue.pop(0), queue.pop(0), queue.pop(0)] == [0, 2**64 - 1, None]


def test_the_native_queue_loses_and_doubles_nothing_under_threads() -> None:
    queue = _core.ReadyQueue(2)
    per_thread, popped = 20_000, [[], []]  # type: tuple[int, list[list[int]]]
    barrier = threading.Barrier(4)

    def push(thread: int) -> None:
        barrier.wait()
        for i in range(per_thread):
            queue.push(i % 3, i % 2, i, thread * per_thread + i)

    def pop(lane: int) -> None:
        barrier.wait()
        while len(popped[0]) + len(popped[1]) < 2 * per_thread:
            handle = queue.pop(lane)
            if handle is not None:
                popped[lane].append(handle)

    threads = [threading.Thread(target=push, args=(i,)) for i in range(2)]
    threads += [threading.Thread(target=pop, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(popped[0] + popped[1]) == list(range(2 * per_thread))


@pytest.mark.parametrize(("value", "module"), [("python", "pysched.engine.twin"), ("", "pysched._core")])
def test_the_environment_chooses_the_implementation(value: str, module: str) -> None:
    script = "from pysched.engine.queue import ReadyQueue; print(ReadyQueue.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYSCHED_CORE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == module


class QueueMachine(RuleBasedStateMachine):
    """Both implementations do the same; and the model says what that is."""

    def __init__(self) -> None:
        super().__init__()
        self.native: Any = None
        self.python: Any = None
        self.lanes = 0
        self.next = 0
        self.now_ns = 0

    @initialize(lanes=st.integers(1, 4), ageing_s=st.sampled_from([0, 0, 1e-7, 1e-6]))
    def begin(self, lanes: int, ageing_s: float) -> None:
        self.lanes = lanes
        self.native, self.python = _core.ReadyQueue(lanes, ageing_s), twin.ReadyQueue(lanes, ageing_s)

    @rule(
        priority=st.integers(0, 2),
        rank=st.sampled_from([0, 0, 0, 1, -1, 2**31 - 1, -(2**31)]),
        jump=st.sampled_from([0, 0, 0, 0, 1 << 40, 1 << 20]),
        lane=st.integers(-1, 3),
        times=st.sampled_from([1, 1, 1, 3, 200]),
    )
    def push(self, priority: int, rank: int, jump: int, lane: int, times: int) -> None:
        for _ in range(times):
            self.next += 1
            sequence = self.next + jump  # a jump makes later ones come out of order
            for queue in (self.native, self.python):
                queue.push(priority, rank, sequence, self.next, min(lane, self.lanes - 1), self.now_ns)

    @rule(lane=st.integers(0, 3), times=st.sampled_from([1, 1, 2, 150]))
    def pop(self, lane: int, times: int) -> None:
        for _ in range(times):
            lane %= self.lanes
            assert self.native.pop(lane, self.now_ns) == self.python.pop(lane, self.now_ns)

    @rule(ns=st.sampled_from([1, 6, 10, 50, 100, 1000]))
    def wait(self, ns: int) -> None:
        self.now_ns += ns

    @precondition(lambda self: self.native is not None)
    @invariant()
    def same_depths(self) -> None:
        assert self.native.depths() == self.python.depths()
        assert len(self.native) == len(self.python)

    def teardown(self) -> None:
        while self.native is not None and len(self.python):
            assert self.native.pop(0, self.now_ns) == self.python.pop(0, self.now_ns)


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)
TestQueueMachine = QueueMachine.TestCase
