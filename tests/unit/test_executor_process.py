"""`pysched.Executor` and its process: initializers, the end of the interpreter, fork, the system's limits."""

from __future__ import annotations

import concurrent.futures
import logging
import subprocess
import sys
import threading
from concurrent.futures import BrokenExecutor
from textwrap import dedent

import pytest

from pysched import Executor

WAIT_S = 60.0  # for something that must come; far above what it takes


def python(program: str) -> subprocess.CompletedProcess[str]:
    """A program of its own, which must end by itself; warnings are errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", dedent(program)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def printed(program: str) -> str:
    ended = python(program)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


# ---- initializers ------------------------------------------------------------------------------------------------


def test_the_initializer_runs_first_in_each_thread() -> None:
    local, started = threading.local(), list[str]()
    barrier = threading.Barrier(3)

    def initialize(value: str) -> None:
        local.value = value
        started.append(threading.current_thread().name)

    def value() -> str:
        barrier.wait(WAIT_S)
        return str(local.value)

    with Executor(3, thread_name_prefix="set up", initializer=initialize, initargs=("ready",)) as executor:
        futures = [executor.submit(value) for _ in range(3)]
        assert [future.result(WAIT_S) for future in futures] == ["ready"] * 3
        assert list(executor.map(lambda _: value(), range(3))) == ["ready"] * 3
    assert sorted(started) == ["set up_0", "set up_1", "set up_2"]


def test_an_initializer_that_fails_breaks_the_executor(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def fails() -> None:
        assert gate.wait(WAIT_S)
        raise ValueError("error in initializer")

    executor = Executor(2, thread_name_prefix="broken", initializer=fails)
    futures = [executor.submit(int) for _ in range(10)]
    assert futures[9].cancel()
    gate.set()
    for future in futures[:9]:
        with pytest.raises(BrokenExecutor, match="initializer failed"):
            future.result(WAIT_S)
    with pytest.raises(BrokenExecutor, match="initializer failed"):
        executor.submit(int)
    assert concurrent.futures.wait(futures, WAIT_S).not_done == set()
    executor.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("broken")]
    assert "Exception in initializer" in caplog.text
    assert "ValueError: error in initializer" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.CRITICAL}


def test_threads_that_sleep_end_when_a_later_initializer_fails(caplog: pytest.LogCaptureFixture) -> None:
    calls, gate = iter([True, False]), threading.Event()

    def second_fails() -> None:
        if not next(calls):
            raise ValueError

    executor = Executor(2, thread_name_prefix="late", initializer=second_fails)
    first = executor.submit(gate.wait, WAIT_S)
    with pytest.raises(BrokenExecutor):
        executor.submit(int).result(WAIT_S)
    gate.set()
    assert first.result(WAIT_S)  # it ran already
    executor.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("late")]


# ---- the end of the interpreter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pass", "executor.shutdown(wait=False)", "del executor", "sys.exit(0)"])
def test_the_interpreter_ends_after_the_calls_that_were_accepted(ending: str) -> None:
    program = f"""
        import sys, threading, time
        from pysched import Executor
        executor = Executor(3)
        barrier = threading.Barrier(3)
        def call(n):
            barrier.wait()    # all three threads are still there
            time.sleep(0.05)  # the main thread has left long ago
            return n
        def show(future):
            sys.stdout.write(f"{{future.result()}}\\n")
            sys.stdout.flush()
        for n in range(9):
            executor.submit(call, n).add_done_callback(show)
        {ending}
    """
    assert sorted(printed(program).split()) == [str(n) for n in range(9)]


def test_the_interpreter_ends_although_workers_sleep() -> None:
    program = """
        from pysched import Executor
        executor = Executor(3)
        print(executor.submit(int).result(), flush=True)
        cycle = [executor]
        cycle.append(cycle)
    """
    assert printed(program) == "0\n"


def test_100_000_futures_pending_at_the_end_of_the_interpreter() -> None:
    program = """
        from pysched import Executor
        made = []
        executor = Executor(2)
        futures = [executor.submit(made.append, n) for n in range(100_000)]
        futures[-1].add_done_callback(lambda _: print("last", flush=True))
    """
    assert printed(program) == "last\n"


def test_cancelled_at_the_end_of_the_interpreter() -> None:
    program = """
        import threading
        from pysched import Executor
        executor, gate = Executor(1), threading.Event()
        executor.submit(gate.wait)
        futures = [executor.submit(print, "never") for _ in range(100)]
        executor.shutdown(wait=False, cancel_futures=True)
        gate.set()
        print(all(future.cancelled() for future in futures), flush=True)
    """
    assert printed(program) == "True\n"


def test_submit_after_the_end_of_the_interpreter_is_refused() -> None:
    program = """
        import atexit
        @atexit.register
        def late():
            try:
                executor.submit(id, None)
            except RuntimeError as error:
                print(error, flush=True)
        from pysched import Executor
        executor = Executor(5)
        executor.submit(id, 42).result()
    """
    assert printed(program) == "cannot schedule new futures after interpreter shutdown\n"


# ---- fork --------------------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_hang() -> None:
    program = """
        import os, threading
        from concurrent.futures import BrokenExecutor
        from pysched import Executor
        executor, gate, running = Executor(2), threading.Event(), threading.Barrier(3)
        def call():
            running.wait()
            gate.wait()
            return "parent"
        called = []
        futures = [executor.submit(call) for _ in range(2)]
        futures.append(executor.submit(print, "never"))
        finished = Executor(1)
        assert finished.submit(int).result() == 0
        futures[0].add_done_callback(called.append)
        running.wait()
        pid = os.fork()
        if pid == 0:
            for future in futures:
                assert isinstance(future.exception(), BrokenExecutor), future
            for each in (executor, finished):
                try:
                    each.submit(int)
                except BrokenExecutor as error:
                    assert "fork" in str(error)
                else:
                    raise AssertionError("accepted")
                each.shutdown()
            assert not called, "callbacks are the parent's"
            with Executor(2) as fresh:
                assert list(fresh.map(abs, [-1, -2])) == [1, 2]
            print("child", flush=True)
        else:
            assert os.waitpid(pid, 0)[1] == 0
            futures[2].cancel()
            gate.set()
            print(futures[0].result(), len(called), flush=True)
    """
    assert printed(program) == "child\nparent 1\n"


def test_fork_from_a_call() -> None:
    program = """
        import os
        from pysched import Executor
        def call():
            pid = os.fork()
            if pid == 0:
                print("child", flush=True)
                return None  # to a worker that has no pool any more
            return os.waitpid(pid, 0)[1]
        with Executor(1) as executor:
            print(executor.submit(call).result(), flush=True)
    """
    assert printed(program) == "child\n0\n"


# ---- the system's limits -----------------------------------------------------------------------------------------


def test_threads_that_the_system_refuses_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    executor = Executor(4, thread_name_prefix="refused")
    gate = threading.Event()
    running = executor.submit(gate.wait, WAIT_S)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    futures = [executor.submit(abs, -n) for n in range(20)]
    monkeypatch.setattr(threading.Thread, "start", start)
    assert not running.done()
    gate.set()
    assert [future.result(WAIT_S) for future in futures] == list(range(20))
    executor.shutdown()


def test_no_thread_at_all_is_an_error_and_the_executor_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made: list[int] = []
    with Executor(4) as executor:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                executor.submit(made.append, 1)
        executor.submit(made.append, 2).result(WAIT_S)
    assert made == [2]
