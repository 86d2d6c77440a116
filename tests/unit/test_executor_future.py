"""The futures of `pysched.Executor` alone and under the functions of concurrent.futures and asyncio."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import itertools
import logging
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, InvalidStateError
from typing import Any

import pytest

from pysched import Executor
from pysched._core import Future

WAIT_S = 60.0  # for something that must come; far above what it takes


def pending() -> Future[Any]:
    return Future()


def running() -> Future[Any]:
    future = pending()
    assert future.set_running_or_notify_cancel()
    return future


def cancelled() -> Future[Any]:
    future = pending()
    assert future.cancel()
    return future


def notified() -> Future[Any]:
    future = cancelled()
    assert not future.set_running_or_notify_cancel()
    return future


def failed() -> Future[Any]:
    future = running()
    future.set_exception(OSError("broken"))
    return future


def succeeded() -> Future[Any]:
    future = running()
    future.set_result(42)
    return future


def waits_in(future: Future[Any], method: str, *args: object) -> tuple[threading.Thread, list[object]]:
    """A thread that has asked and, as far as can be known from outside, sleeps."""
    found: list[object] = []
    asked = threading.Event()

    def ask() -> None:
        asked.set()
        try:
            found.append(getattr(future, method)(*args))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(WAIT_S)
    return thread, found


# ---- one future --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "done", "is_running", "is_cancelled", "cancels", "state", "shown"),
    [
        (pending, False, False, False, True, "PENDING", "state=pending>"),
        (running, False, True, False, False, "RUNNING", "state=running>"),
        (cancelled, True, False, True, True, "CANCELLED", "state=cancelled>"),
        (notified, True, False, True, True, "CANCELLED_AND_NOTIFIED", "state=cancelled>"),
        (failed, True, False, False, False, "FINISHED", "state=finished raised OSError>"),
        (succeeded, True, False, False, False, "FINISHED", "state=finished returned int>"),
    ],
)
def test_states(
    make: Callable[[], Any], done: bool, is_running: bool, is_cancelled: bool, cancels: bool, state: str, shown: str
) -> None:
    future = make()
    assert (future.done(), future.running(), future.cancelled(), future._state) == (
        done,
        is_running,
        is_cancelled,
        state,
    )
    assert repr(future).startswith("<Future at 0x")
    assert repr(future).endswith(shown)
    assert future.cancel() is cancels
    assert future._state == ("CANCELLED" if state == "PENDING" else state)


def test_result_and_exception_without_waiting() -> None:
    for make in (pending, running):
        for timeout in (0, 0.001, -1):
            with pytest.raises(concurrent.futures.TimeoutError):
                make().result(timeout=timeout)
            with pytest.raises(concurrent.futures.TimeoutError):
                make().exception(timeout=timeout)
    for make in (cancelled, notified):
        with pytest.raises(CancelledError):
            make().result(timeout=0)
        with pytest.raises(CancelledError):
            make().exception(timeout=0)
    with pytest.raises(OSError, match="broken"):
        failed().result(timeout=0)
    assert isinstance(failed().exception(timeout=0), OSError)
    assert succeeded().result(timeout=0) == 42
    assert succeeded().exception(timeout=0) is None


@pytest.mark.parametrize("timeout", [None, WAIT_S, 1e300])
@pytest.mark.parametrize("shared", [False, True], ids=["bare", "with a condition"])
def test_threads_that_sleep_are_woken(timeout: float | None, shared: bool) -> None:
    error = OSError()
    ends: list[tuple[str, Callable[[Any], object], Callable[[object], bool]]] = [
        ("result", lambda future: future.set_result(42), lambda found: found == 42),
        ("result", lambda future: future.set_exception(error), lambda found: found is error),
        ("exception", lambda future: future.set_exception(error), lambda found: found is error),
        ("exception", lambda future: future.set_result(42), lambda found: found is None),
        ("result", lambda future: future.cancel(), lambda found: isinstance(found, CancelledError)),
    ]
    for method, end, right in ends:
        future: Any = pending()
        if shared:
            assert future._condition is future._condition
        waiting = [waits_in(future, method, timeout) for _ in range(3)]
        end(future)
        for thread, found in waiting:
            thread.join(WAIT_S)
            assert right(found[0])


def test_a_future_ended_by_hand_under_its_condition() -> None:
    """State first, then the result: a thread that sleeps sees both or neither."""
    future: Any = pending()
    thread, found = waits_in(future, "exception", WAIT_S)
    error = OSError()
    with future._condition:
        future._state = "FINISHED"
        thread.join(0.01)  # the time a thread that does not wait for the condition would need to be wrong
        future._exception = error
        future._condition.notify_all()
    thread.join(WAIT_S)
    assert found == [error]


def test_the_fields_of_the_standard_future_can_be_read_and_set() -> None:
    future: Any = pending()
    assert (future._state, future._result, future._exception, future._done_callbacks) == ("PENDING", None, None, [])
    called: list[object] = []
    future._done_callbacks.append(called.append)
    future.add_done_callback(called.append)
    future.set_result(42)
    assert called == [future, future]
    future._result = 43
    assert (future.result(), future._result) == (43, 43)


def test_one_of_several_sleepers_gives_up() -> None:
    future = pending()
    first, found_first = waits_in(future, "result", WAIT_S)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.001)
    second, found_second = waits_in(future, "result", WAIT_S)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.001)
    future.set_result(1)
    first.join(WAIT_S)
    second.join(WAIT_S)
    assert found_first == found_second == [1]


def test_a_future_ends_once() -> None:
    for make in (succeeded, failed, cancelled, notified):
        future: Any = make()
        before = repr(future)
        for end, value in ((future.set_result, 2), (future.set_exception, ValueError())):
            with pytest.raises(InvalidStateError, match=f"{future._state}: <Future at 0x[0-9a-f]+ state="):
                end(value)
        assert repr(future) == before


@pytest.mark.parametrize("make", [running, notified, failed, succeeded])
def test_a_future_starts_once(make: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"), pytest.raises(RuntimeError, match="unexpected state"):
        make().set_running_or_notify_cancel()
    assert "in unexpected state" in caplog.text


def test_callbacks_run_in_order_once_whatever_the_end() -> None:
    for end in ("set_result", "set_exception", "cancel"):
        future: Any = pending()
        seen: list[tuple[int, str]] = []
        for n in range(3):
            future.add_done_callback(lambda f, n=n, seen=seen: seen.append((n, f._state)))
        args = {"set_result": (5,), "set_exception": (ValueError(),), "cancel": ()}[end]
        getattr(future, end)(*args)
        future.cancel()
        state = "CANCELLED" if end == "cancel" else "FINISHED"
        assert seen == [(n, state) for n in range(3)]
        future.add_done_callback(lambda f, seen=seen: seen.append((3, f._state)))
        assert seen[3:] == [(3, state)]


def test_a_callback_that_fails_is_logged_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_: object) -> None:
        raise Exception("doh!")

    future, seen = pending(), list[object]()
    future.add_done_callback(fails)
    future.add_done_callback(seen.append)
    future.set_result(5)
    assert seen == [future]
    assert caplog.text.count("exception calling callback for <Future") == 1
    future.add_done_callback(fails)
    assert caplog.text.count("exception calling callback for <Future") == 2
    assert "doh!" in caplog.text


def test_callbacks_run_in_the_worker_and_an_error_beyond_exception_leaves_it_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate, names = threading.Event(), list[str]()

    def ends_threads(_: object) -> None:
        names.append(threading.current_thread().name)
        raise SystemExit

    with Executor(1, thread_name_prefix="calling") as executor:
        future = executor.submit(gate.wait, WAIT_S)
        future.add_done_callback(ends_threads)
        gate.set()
        assert executor.submit(int).result(WAIT_S) == 0
    assert names == ["calling_0"]
    assert "Exception in worker" in caplog.text


def test_a_future_that_was_ended_by_hand_is_not_run(caplog: pytest.LogCaptureFixture) -> None:
    gate, ran = threading.Event(), list[int]()
    with Executor(1) as executor:
        executor.submit(gate.wait, WAIT_S)
        future: Any = executor.submit(ran.append, 1)
        future.set_result("by hand")
        gate.set()
        assert executor.submit(int).result(WAIT_S) == 0
    assert (future.result(), ran) == ("by hand", [])
    assert "in unexpected state" in caplog.text


def test_done_callbacks_added_while_it_ends_are_never_lost() -> None:
    with Executor(2) as executor:
        for _ in range(2000):
            seen: list[object] = []
            future = executor.submit(int)
            for _ in range(3):
                future.add_done_callback(seen.append)
            future.result(WAIT_S)
            executor.submit(int).result(WAIT_S)
            # The worker may still be in the callbacks of the first; a shutdown below waits for it.
        executor.shutdown()
        assert len(seen) == 3


def test_cancel_races_with_the_start() -> None:
    with Executor(2) as executor:
        for _ in range(2000):
            ran: list[int] = []
            future = executor.submit(ran.append, 1)
            if future.cancel():
                with pytest.raises(CancelledError):
                    future.result(WAIT_S)
                assert not ran
            else:
                future.result(WAIT_S)
                assert ran == [1]


def test_what_a_cancelled_call_was_made_of_may_come_back_when_it_goes() -> None:
    again: list[bool] = []
    held: list[type] = []
    gate = threading.Event()

    class Argument:
        def __del__(self) -> None:
            held.extend(map(type, gc.get_referents(future)))
            again.append(future.cancel())

    with Executor(1) as executor:
        executor.submit(gate.wait, WAIT_S)
        future: Any = executor.submit(print, Argument())
        assert future.cancel()
        assert again == [True]
        assert tuple not in held  # the arguments, which were about to be freed a second time
        gate.set()


def test_a_future_takes_part_in_garbage_collection() -> None:
    future: Any = pending()
    future.itself = future  # has a __dict__, as the standard one
    future.set_result([future])
    reference = weakref.ref(future)
    del future
    gc.collect()
    assert reference() is None


def test_a_future_is_no_value_to_copy() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(pending())
    with pytest.raises(TypeError):
        copy.copy(pending())


def test_a_future_may_be_subclassed() -> None:
    class Named(Future[int]):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    named = Named("seven")
    named.set_result(7)
    assert (named.result(), named.name) == (7, "seven")


# ---- with the functions of concurrent.futures --------------------------------------------------------------------


def test_wait_for_all() -> None:
    with Executor(5) as executor:
        futures: set[Any] = {executor.submit(divmod, 2, 0), executor.submit(abs, -1), succeeded(), notified(), failed()}
        assert concurrent.futures.wait(futures, WAIT_S) == (futures, set())


def test_wait_for_the_first() -> None:
    gate = threading.Event()
    with Executor(5) as executor:
        quick, slow, never = executor.submit(abs, -1), executor.submit(gate.wait, WAIT_S), cancelled()
        given: list[Any] = [never, quick, slow]
        done, not_done = concurrent.futures.wait(given, WAIT_S, concurrent.futures.FIRST_COMPLETED)
        gate.set()
        assert (done, not_done) == ({quick}, {never, slow})


def test_wait_for_the_first_exception() -> None:
    gate, first = threading.Event(), threading.Event()

    def fails() -> None:
        assert first.wait(WAIT_S)
        raise ValueError

    with Executor(5) as executor:
        good, bad, slow = executor.submit(first.set), executor.submit(fails), executor.submit(gate.wait, WAIT_S)
        good.result(WAIT_S)
        given: list[Any] = [good, bad, slow]
        done, not_done = concurrent.futures.wait(given, WAIT_S, concurrent.futures.FIRST_EXCEPTION)
        gate.set()
        assert (done, not_done) == ({good, bad}, {slow})


def test_wait_runs_out_of_time() -> None:
    gate = threading.Event()
    with Executor(5) as executor:
        slow, ready = executor.submit(gate.wait, WAIT_S), succeeded()
        assert concurrent.futures.wait([slow, ready], timeout=0.001) == ({ready}, {slow})
        gate.set()


def test_as_completed_yields_each_once_as_it_ends() -> None:
    gates = [threading.Event() for _ in range(5)]
    with Executor(5) as executor:
        futures = [executor.submit(gate.wait, WAIT_S) for gate in gates]
        order = [3, 0, 4, 1, 2]
        gates[order[0]].set()
        seen = []
        for n, future in enumerate(concurrent.futures.as_completed(itertools.chain(futures, futures), WAIT_S)):
            seen.append(futures.index(future))
            if n + 1 < len(order):
                gates[order[n + 1]].set()
    assert seen == order


def test_as_completed_runs_out_of_time_with_the_standard_words() -> None:
    with pytest.raises(concurrent.futures.TimeoutError, match=r"2 \(of 4\) futures unfinished"):
        list(concurrent.futures.as_completed([notified(), pending(), running(), succeeded()], timeout=0))


def test_as_completed_lets_go_of_what_it_yielded() -> None:
    futures: list[Any] = [pending() for _ in range(8)] + [notified(), succeeded()]
    futures[0].set_result("first")
    for future in concurrent.futures.as_completed(list(futures), WAIT_S):
        futures.remove(future)
        yielded = weakref.ref(future)
        del future
        gc.collect()
        assert yielded() is None
        if futures and not futures[0].done():
            futures[0].set_result("next")


def test_cancelled_futures_are_announced_when_a_worker_meets_them() -> None:
    gate = threading.Event()
    with Executor(1) as executor:
        executor.submit(gate.wait, WAIT_S)
        futures = [executor.submit(int) for _ in range(3)]
        assert all(future.cancel() for future in futures)
        done, not_done = concurrent.futures.wait(futures, timeout=0.001)
        assert (done, not_done) == (set(), set(futures))  # as in the standard library, cancelled is not yet announced
        announcing = threading.Timer(0.0, gate.set)
        announcing.start()
        assert set(concurrent.futures.as_completed(futures, WAIT_S)) == set(futures)
        announcing.join(WAIT_S)


def test_wait_while_calls_end_all_the_time() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Executor(5) as executor:
            for _ in range(20):
                event = threading.Event()
                futures = {executor.submit(event.wait, WAIT_S) for _ in range(100)}
                event.set()
                assert concurrent.futures.wait(futures, WAIT_S).not_done == set()
                assert (
                    len(set(concurrent.futures.as_completed([executor.submit(int) for _ in range(100)], WAIT_S))) == 100
                )
    finally:
        sys.setswitchinterval(interval)


# ---- with asyncio and signals ------------------------------------------------------------------------------------


def test_asyncio_wraps_results_errors_and_cancellation() -> None:
    async def use(executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.wrap_future(executor.submit(abs, -3)) == 3
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, divmod, 1, 0)
        gate = threading.Event()
        executor.submit(gate.wait, WAIT_S)
        inner = executor.submit(int)
        outer = asyncio.wrap_future(inner)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        await asyncio.sleep(0)  # one round of the loop, which cancels the inner one
        assert inner.cancelled()
        gate.set()
        assert await asyncio.gather(*[loop.run_in_executor(executor, abs, -n) for n in range(1000)]) == list(
            range(1000)
        )

    with Executor(1) as executor:
        asyncio.run(use(executor))


def signalled(handle: Callable[[], None]) -> tuple[Any, bool]:
    """What a wait in result() ends with, while a call sends this thread signals until one was handled.

    One may not be enough, here as for every lock of CPython: it is handled late if it comes in the moment between
    giving up the GIL and falling asleep.
    """
    main, handled = threading.get_ident(), threading.Event()

    def handler(*_: object) -> None:
        if not handled.is_set():
            handled.set()
            handle()

    def ring() -> str:
        while not handled.wait(0.01):
            signal.pthread_kill(main, signal.SIGUSR1)
        return "rung"

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Executor(1) as executor:
            executor.submit(int).result(WAIT_S)  # the thread is there: nothing but result() waits below
            try:
                return executor.submit(ring).result(), handled.is_set()
            except KeyboardInterrupt as interrupt:
                return interrupt, handled.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_main_thread_can_be_interrupted_while_it_waits() -> None:
    ended, handled = signalled(interrupt)
    assert isinstance(ended, KeyboardInterrupt)
    assert handled


def test_a_signal_that_raises_nothing_does_not_end_the_wait() -> None:
    assert signalled(lambda: None) == ("rung", True)
