"""`pysched.Executor` through its front door: order, waking, shutdown; all that ThreadPoolExecutor promises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from pysched import Executor, Priority

WAIT_S = 60.0  # for something that must come; far above what it takes


@pytest.fixture
def executor() -> Iterator[Executor]:
    with Executor(5) as running:
        yield running


@contextlib.contextmanager
def occupied(executor: concurrent.futures.Executor, workers: int = 1) -> Iterator[None]:
    """All workers stand still inside; what is submitted meanwhile waits."""
    gate, standing = threading.Event(), threading.Barrier(workers + 1)

    def stand() -> None:
        standing.wait(WAIT_S)
        assert gate.wait(WAIT_S)

    for _ in range(workers):
        executor.submit(stand)
    del executor  # held by the test alone
    standing.wait(WAIT_S)
    try:
        yield
    finally:
        gate.set()


def threads_named(prefix: str) -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)}


# ---- submit ------------------------------------------------------------------------------------------------------


def test_is_a_standard_executor_and_returns_standard_futures(executor: Executor) -> None:
    future = executor.submit(pow, 2, 8)
    assert isinstance(executor, concurrent.futures.Executor)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(WAIT_S) == 256
    assert (future.done(), future.running(), future.cancelled(), future.exception()) == (True, False, False, None)


def test_arguments_reach_the_call_as_given(executor: Executor) -> None:
    def capture(*args: object, **kwargs: object) -> object:
        return args, kwargs

    untyped: Any = executor
    assert untyped.submit(capture).result() == ((), {})
    assert untyped.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    assert untyped.submit(lambda: "nothing pickled").result() == "nothing pickled"
    for wrong in ({"fn": capture, "arg": 1}, {"arg": 1}, {}):
        with pytest.raises(TypeError):
            untyped.submit(**wrong)


def test_an_exception_arrives_with_its_traceback(executor: Executor) -> None:
    def fails_here() -> None:
        raise LookupError("no such thing")

    future = executor.submit(fails_here)
    with pytest.raises(LookupError, match="no such thing") as caught:
        future.result(WAIT_S)
    assert "fails_here" in [entry.name for entry in caught.traceback]
    assert future.exception() is caught.value


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("task"), GeneratorExit()])
def test_a_worker_survives_what_only_ends_threads(error: BaseException) -> None:
    def fails() -> None:
        raise error

    with Executor(1) as executor:
        assert executor.submit(fails).exception(WAIT_S) is error
        assert executor.submit(int).result(WAIT_S) == 0


def test_100_000_pending_futures() -> None:
    with Executor(2) as executor:
        with occupied(executor, 2):
            futures = [executor.submit(abs, -i) for i in range(100_000)]
            assert not any(future.done() for future in futures)
        assert [future.result(WAIT_S) for future in futures] == list(range(100_000))


def test_submit_from_many_threads_and_from_calls(executor: Executor) -> None:
    def outer(base: int) -> list[concurrent.futures.Future[int]]:
        return [executor.submit(abs, -(base + i)) for i in range(100)]

    def feed(bases: range, into: list[int]) -> None:
        for base in bases:
            into += [inner.result(WAIT_S) for inner in executor.submit(outer, base).result(WAIT_S)]

    found: list[list[int]] = [[] for _ in range(4)]
    feeders = [
        threading.Thread(target=feed, args=(range(n * 2000, (n + 1) * 2000, 100), found[n])) for n in range(len(found))
    ]
    for feeder in feeders:
        feeder.start()
    for feeder in feeders:
        feeder.join(WAIT_S)
    assert sorted(itertools.chain(*found)) == list(range(8000))


def test_a_subclass_that_forgets_init_gets_an_error_not_a_crash() -> None:
    class Forgetful(Executor):
        def __init__(self) -> None:
            pass

    forgetful = Forgetful()
    for use in (lambda: forgetful.submit(int), lambda: forgetful.at(0), forgetful.shutdown):
        with pytest.raises(RuntimeError, match="__init__"):
            use()


def test_what_cannot_be_is_refused() -> None:
    untyped: Any = Executor
    for workers in (0, -1, 100_001):
        with pytest.raises(ValueError, match="workers"):
            Executor(workers)
    with pytest.raises(TypeError, match="workers"):
        untyped("8")
    with pytest.raises(TypeError, match="initializer must be a callable"):
        untyped(1, initializer=3)
    with Executor(1) as executor:
        with pytest.raises(RuntimeError, match="initialized"):
            untyped.__init__(executor)
        for priority, rank in ((3, 0), (-1, 0), (0, 2**31), (0, -(2**31) - 1)):
            with pytest.raises(ValueError, match="out of range"):
                executor.at(priority, rank)


# ---- order -------------------------------------------------------------------------------------------------------


def test_priority_then_rank_then_arrival() -> None:
    order: list[tuple[int, int, int]] = []
    keys = [(p, r, n) for n in range(3) for r in (0, -5, 7) for p in (Priority.LOW, Priority.HIGH, Priority.MED)]
    with Executor(1) as executor, occupied(executor):
        for key in keys:
            executor.at(key[0], rank=key[1]).submit(order.append, key)
    assert order == sorted(keys, key=lambda key: (key[0], -key[1], key[2]))


def test_the_executor_itself_is_med_and_a_view_maps_at_its_priority() -> None:
    order: list[str] = []
    with Executor(1) as executor, occupied(executor):
        executor.submit(order.append, "med")
        executor.at(Priority.LOW).submit(order.append, "low")
        executor.at(Priority.HIGH).map(order.append, ["high 1", "high 2"])
    assert order == ["high 1", "high 2", "med", "low"]


def test_a_view_is_an_executor_and_keeps_the_threads_alive() -> None:
    view = Executor(2, thread_name_prefix="viewed").at(Priority.HIGH)
    gc.collect()
    assert isinstance(view, concurrent.futures.Executor)
    assert asyncio.run(run_in(view)) == 42
    view.shutdown()
    assert not threads_named("viewed")


async def run_in(executor: concurrent.futures.Executor) -> int:
    return await asyncio.get_running_loop().run_in_executor(executor, lambda: 42)


# ---- waking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8, 32])
def test_calls_that_block_reach_all_workers(workers: int) -> None:
    barrier = threading.Barrier(workers)
    with Executor(workers) as executor:
        for _ in range(20):  # first with threads that start, then with threads that sleep
            futures = [executor.submit(barrier.wait, WAIT_S) for _ in range(workers)]
            assert sorted(future.result(WAIT_S) for future in futures) == list(range(workers))


def test_calls_submitted_by_a_call_that_blocks_reach_the_other_workers() -> None:
    with Executor(8) as executor:
        barrier = threading.Barrier(8)

        def lead() -> None:
            for _ in range(7):
                executor.submit(barrier.wait, WAIT_S)
            barrier.wait(WAIT_S)

        for _ in range(20):
            executor.submit(lead).result(WAIT_S)


def test_a_result_that_nobody_took_may_submit_when_it_goes() -> None:
    """Its destructor runs in the worker, between the last call and sleep."""
    with Executor(1) as executor:
        for _ in range(50):
            told = threading.Event()

            class Result:
                def __del__(self, told: threading.Event = told) -> None:
                    executor.submit(told.set)

            executor.submit(Result)
            assert told.wait(WAIT_S)


def test_threads_start_as_calls_come_and_are_used_again() -> None:
    with Executor(8, thread_name_prefix="reused") as executor:
        assert not threads_named("reused")
        for _ in range(50):
            executor.submit(int).result(WAIT_S)
        assert threads_named("reused") == {"reused_0"}
        with occupied(executor, 8):
            futures = [executor.submit(int) for _ in range(100)]
            assert threads_named("reused") == {f"reused_{n}" for n in range(8)}
        concurrent.futures.wait(futures, WAIT_S)


def test_calls_run_in_named_threads_with_their_own_locals() -> None:
    local = threading.local()

    def first_call_here() -> tuple[str, bool]:
        seen = hasattr(local, "seen")
        local.seen = True
        return threading.current_thread().name, seen

    with Executor(1, thread_name_prefix="") as executor:
        name, seen = executor.submit(first_call_here).result(WAIT_S)
        assert name.startswith("Executor-")
        assert name.endswith("_0")
        assert not seen
        assert executor.submit(first_call_here).result(WAIT_S) == (name, True)


def test_c_functions_do_not_keep_the_interpreter_to_themselves() -> None:
    """A flood of calls that run no bytecode: another thread sees it while it lasts, not only before and after."""
    calls, done, seen = 1500, 0, set[int]()
    with Executor(1) as executor:
        with occupied(executor):
            futures = [executor.submit(sum, range(20_000)) for _ in range(calls)]
        while done < calls:
            done = sum(future.done() for future in futures)
            seen.add(done)
    assert len(seen) > 3  # some twenty turns of 5 ms; without them the start, the end, and at most a moment between


# ---- map ---------------------------------------------------------------------------------------------------------


def test_map_gives_results_in_order(executor: Executor) -> None:
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(executor.map(pow, range(10), range(10), chunksize=3)) == [n**n for n in range(10)]


def test_map_raises_where_the_call_did(executor: Executor) -> None:
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_submits_without_being_iterated() -> None:
    finished: list[int] = []
    with Executor(5) as executor:
        executor.map(finished.append, range(10))
    assert sorted(finished) == list(range(10))


def test_map_out_of_time_cancels_the_rest() -> None:
    started: list[int] = []
    with Executor(1) as executor, occupied(executor):
        results = executor.map(started.append, range(3), timeout=0)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
    assert started == []


def test_map_closed_early_cancels_the_rest() -> None:
    started: list[int] = []
    with Executor(1) as executor, occupied(executor):
        results: Any = executor.map(started.append, range(3), timeout=0)
        with contextlib.closing(results), pytest.raises(concurrent.futures.TimeoutError):
            next(results)
    assert started == []


def test_map_keeps_no_result_that_was_taken(executor: Executor) -> None:
    class Result:
        pass

    for result in executor.map(lambda _: Result(), range(10)):
        taken = weakref.ref(result)
        del result
        gc.collect()
        assert taken() is None


# ---- shutdown ----------------------------------------------------------------------------------------------------


def test_shutdown_makes_the_calls_that_wait_and_refuses_more() -> None:
    executor = Executor(2, thread_name_prefix="closing")
    futures = [executor.submit(abs, n) for n in range(1000)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    assert not threads_named("closing")
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(int)
    executor.shutdown()


def test_the_context_manager_shuts_down() -> None:
    with Executor(5, thread_name_prefix="managed") as executor:
        assert list(executor.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    assert not threads_named("managed")
    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_shutdown_without_waiting_still_makes_the_calls() -> None:
    executor = Executor(1)
    with occupied(executor):
        futures = [executor.submit(abs, -n) for n in range(100)]
        executor.shutdown(wait=False)
        assert not futures[0].done()
    assert [future.result(WAIT_S) for future in futures] == list(range(100))
    executor.shutdown()


def test_shutdown_that_cancels_tells_those_who_wait() -> None:
    executor = Executor(1)
    with occupied(executor):
        futures = [executor.submit(int) for _ in range(50)]
        executor.shutdown(wait=False, cancel_futures=True)
        assert all(future.cancelled() for future in futures)
        done, not_done = concurrent.futures.wait(futures, WAIT_S)  # told, not only cancelled
        assert (len(done), len(not_done)) == (50, 0)
    executor.shutdown()


def test_shutdown_from_a_call_does_not_wait_for_itself() -> None:
    executor = Executor(2, thread_name_prefix="inner")
    executor.submit(executor.shutdown).result(WAIT_S)
    with pytest.raises(RuntimeError):
        executor.submit(int)
    executor.shutdown()
    assert not threads_named("inner")


def test_shutdown_after_a_quick_cancel_does_not_hang() -> None:
    for _ in range(200):
        executor = Executor(1)
        executor.submit(int).result(WAIT_S)
        executor.submit(int).cancel()
        executor.shutdown()


def test_an_executor_that_nobody_holds_makes_its_calls_and_ends_its_threads() -> None:
    executor = Executor(5, thread_name_prefix="dropped")
    with occupied(executor):
        results = executor.map(abs, range(-5, 5))
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("dropped")]
        reference = weakref.ref(executor)
        del executor
        gc.collect()
        assert reference() is None
    assert threads
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_nothing_of_a_call_is_kept() -> None:
    class Subject:
        def method(self, other: object) -> None:
            pass

    with Executor(1) as executor:
        for cancel in (False, True):
            collected = threading.Event()
            subject, other = Subject(), Subject()
            weakref.finalize(subject, collected.set)
            if cancel:
                with occupied(executor):
                    future = executor.submit(subject.method, other)
                    del subject
                    assert future.cancel()
                    assert collected.is_set()
            else:
                executor.submit(subject.method, other)
                del subject
                assert collected.wait(WAIT_S)


def test_no_cycle_keeps_a_failed_call() -> None:
    """What CPython breaks by hand: exception → traceback → frame → future → exception."""

    class Local:
        pass

    kept: list[weakref.ref[Local]] = []

    def fails() -> None:
        local = Local()
        kept.append(weakref.ref(local))
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        with Executor(1) as executor:
            future = executor.submit(fails)
            with contextlib.suppress(ValueError):
                future.result(WAIT_S)
            del future
        assert kept[0]() is None
    finally:
        gc.enable()


def test_shutdown_races_with_submit() -> None:
    """Whatever submit() accepted is made, however the two meet."""
    for _ in range(100):
        executor = Executor(2)
        accepted: list[concurrent.futures.Future[int]] = []

        def feed(executor: Executor = executor, accepted: list[concurrent.futures.Future[int]] = accepted) -> None:
            with contextlib.suppress(RuntimeError):
                while True:
                    accepted.append(executor.submit(int))

        feeder = threading.Thread(target=feed)
        feeder.start()
        executor.shutdown()
        feeder.join(WAIT_S)
        assert all(future.result(WAIT_S) == 0 for future in accepted)
        executor.shutdown()
