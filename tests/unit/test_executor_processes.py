"""`pysched.Executor(processes=…)`: calls in worker processes, with what `concurrent.futures` promises of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError  # a class of its own on Python 3.10
from concurrent.futures import as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from pysched import Executor, Priority
from tests.unit import process_calls

WAIT_S = 60.0  # for something that must come; far above what it takes


@pytest.fixture(scope="module")
def pair() -> Iterator[Executor]:
    with Executor(processes=2) as executor:
        yield executor


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# ---- calls and results -------------------------------------------------------------------------------------------


def test_calls_run_in_processes_of_their_own(pair: Executor) -> None:
    futures = [pair.submit(process_calls.identify, number, name="x") for number in range(20)]
    results = [future.result(WAIT_S) for future in futures]
    assert [rest for _, *rest in results] == [[number, ("name", "x")] for number in range(20)]
    pids = {pid for pid, *_ in results}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_keeps_the_order_whatever_the_chunks(pair: Executor, chunksize: int) -> None:
    assert list(pair.map(process_calls.square, range(10), chunksize=chunksize)) == [n * n for n in range(10)]
    assert list(pair.map(pow, [2, 3, 4], [5, 6], chunksize=chunksize)) == [32, 729]


def test_map_raises_what_a_call_raised_and_refuses_bad_chunks(pair: Executor) -> None:
    results = pair.map(divmod, [1, 1], [1, 0], chunksize=1)
    assert next(results) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pair.map(abs, [1], chunksize=0)


def test_functions_of_concurrent_futures_take_the_futures(pair: Executor) -> None:
    futures = {pair.submit(process_calls.square, number) for number in range(10)}
    assert {future.result() for future in as_completed(futures, WAIT_S)} == {n * n for n in range(10)}
    assert wait(futures, WAIT_S).done == futures


def test_a_future_that_takes_long_times_out_and_cannot_be_cancelled(pair: Executor, fifo: Path) -> None:
    future = pair.submit(process_calls.waits_for, str(fifo))
    with pytest.raises(FutureTimeoutError):
        future.result(0.001)
    with fifo.open("w") as writer:  # open: the call runs
        assert not future.cancel()
        writer.write("done")
    assert future.result(WAIT_S) == "done"


# ---- errors ------------------------------------------------------------------------------------------------------


def test_an_exception_comes_back_with_its_traceback(pair: Executor) -> None:
    error = pair.submit(process_calls.fails, "no good").exception(WAIT_S)
    assert isinstance(error, ValueError)
    assert error.args == ("no good",)
    trace = str(error.__cause__)
    assert "raise ValueError(message)" in trace
    assert "process_calls.py" in trace
    assert "pysched/processes.py" not in trace


def test_a_call_that_exits_fails_alone(pair: Executor) -> None:
    with pytest.raises(SystemExit, match="7"):
        pair.submit(sys.exit, 7).result(WAIT_S)
    assert pair.submit(abs, -1).result(WAIT_S) == 1


def test_what_cannot_be_pickled_fails_its_own_future(pair: Executor) -> None:
    local = threading.Lock()
    argument = pair.submit(process_calls.identify, local)
    function = pair.submit(lambda: 1)
    result = pair.submit(process_calls.returns_a_lock)
    for future in (argument, result):
        with pytest.raises(TypeError, match="lock"):
            future.result(WAIT_S)
    assert "lambda" in str(function.exception(WAIT_S))
    with pytest.raises(RuntimeError, match=r"TwoArgumentsError: one .the exception itself cannot be pickled") as caught:
        pair.submit(process_calls.fails_without_pickle).result(WAIT_S)
    assert "fails_without_pickle" in str(caught.value.__cause__)
    assert pair.submit(abs, -1).result(WAIT_S) == 1


# ---- deaths ------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_fails_the_call_it_was_making_and_no_other() -> None:
    with Executor(processes=2) as executor:
        futures = [executor.submit(process_calls.square, n) for n in range(10)]
        killed, ended = executor.submit(process_calls.dies_by, signal.SIGKILL), executor.submit(os._exit, 3)
        futures += [executor.submit(process_calls.square, n) for n in range(10, 20)]
        assert [future.result(WAIT_S) for future in futures] == [n * n for n in range(20)]
        with pytest.raises(BrokenProcessPool, match=r"worker process \d+ ended by SIGKILL while it made this call"):
            killed.result(WAIT_S)
        with pytest.raises(BrokenProcessPool, match="exit code 3"):
            ended.result(WAIT_S)


def test_a_process_that_dies_between_two_calls_is_replaced_unseen() -> None:
    with Executor(processes=1) as executor:
        pid = executor.submit(os.getpid).result(WAIT_S)
        process = psutil.Process(pid)
        process.kill()
        process.wait(WAIT_S)
        assert executor.submit(os.getpid).result(WAIT_S) != pid


def test_the_death_is_seen_although_a_child_holds_the_connection(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with Executor(processes=1) as executor:
        try:
            with pytest.raises(BrokenProcessPool, match="exit code 3"):
                executor.submit(process_calls.leaves_a_child_and_dies, str(told)).result(WAIT_S)
            assert executor.submit(abs, -1).result(WAIT_S) == 1
        finally:
            os.kill(int(told.read_text()), signal.SIGKILL)


def test_processes_end_with_the_parent_that_is_killed(fifo: Path) -> None:
    program = f"""
        import os
        from tests.unit import process_calls
        from pysched import Executor
        executor = Executor(processes=2)
        executor.submit(process_calls.tells, {str(fifo)!r})
        print(executor.submit(os.getpid).result(), flush=True)
        input()  # for ever
    """
    command = [sys.executable, "-c", dedent(program)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        idle = os.pidfd_open(int(parent.stdout.readline()))
        with fifo.open() as reader:
            busy = psutil.Process(int(reader.readline()))
            parent.kill()
            ended = select.select([idle], [], [], WAIT_S)[0]
            os.close(idle)
            busy.kill()  # before anything is held against it: nobody else would
            assert ended
            assert reader.read() == ""
    assert parent.returncode == -signal.SIGKILL


# ---- initializers ------------------------------------------------------------------------------------------------


def test_the_initializer_runs_first_in_each_process() -> None:
    with Executor(processes=2, initializer=process_calls.initialize, initargs=(1, "two")) as executor:
        assert executor.submit(process_calls.initialized_with).result(WAIT_S) == [1, "two"]
        with suppress(BrokenProcessPool):
            executor.submit(os._exit, 1).result(WAIT_S)
        futures = [executor.submit(process_calls.initialized_with) for _ in range(8)]
        assert [future.result(WAIT_S) for future in futures] == [[1, "two"]] * 8


def test_an_initializer_that_fails_breaks_the_executor() -> None:
    with Executor(processes=1, initializer=process_calls.fails, initargs=("not today",)) as executor:
        futures = [executor.submit(abs, -1)]
        with suppress(BrokenProcessPool):  # perhaps it is known by now
            futures.append(executor.submit(abs, -2))
        for future in futures:
            with pytest.raises(BrokenProcessPool, match=r"initializer failed.*ValueError: not today"):
                future.result(WAIT_S)
        with pytest.raises(BrokenProcessPool, match="initializer failed"):
            executor.submit(abs, -1)


# ---- order, cancelling, the end ----------------------------------------------------------------------------------


def test_priorities_and_cancelling_are_those_of_the_executor(fifo: Path) -> None:
    with Executor(processes=1) as executor:
        gate = executor.submit(process_calls.waits_for, str(fifo))
        order: list[str] = []
        for name, priority, rank in (("low", Priority.LOW, 0), ("med", Priority.MED, 0), ("high", Priority.HIGH, 0)):
            future = executor.at(priority, rank).submit(str, name)
            future.add_done_callback(lambda future: order.append(future.result()))
        cancelled = executor.submit(os._exit, 1)
        assert cancelled.cancel()
        with fifo.open("w") as writer:
            writer.write("go")
        assert gate.result(WAIT_S) == "go"
    assert order == ["high", "med", "low"]
    assert cancelled.cancelled()


def test_shutdown_ends_the_processes_and_cancels_what_waits(fifo: Path) -> None:
    executor = Executor(processes=1)
    process = psutil.Process(executor.submit(os.getpid).result(WAIT_S))
    gate = executor.submit(process_calls.waits_for, str(fifo))
    waiting = [executor.submit(abs, -n) for n in range(5)]
    with fifo.open("w") as writer:
        executor.shutdown(wait=False, cancel_futures=True)
        writer.write("go")
    executor.shutdown()
    assert gate.result(WAIT_S) == "go"
    assert all(future.cancelled() for future in waiting)
    process.wait(WAIT_S)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, -1)


def test_the_interpreter_ends_after_the_calls_that_were_accepted(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        dedent("""
            import sys
            from pysched import Executor
            def call(n):
                return n * n  # of __main__
            def tell(future):
                sys.stdout.write(f"{future.result()}\\n")  # two threads' `print` may mix: it writes twice
            if __name__ == "__main__":
                executor = Executor(processes=2)
                for n in range(9):
                    executor.submit(call, n).add_done_callback(tell)
        """)
    )
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(map(int, ended.stdout.split())) == [n * n for n in range(9)]


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match="workers and processes: give one of them"):
        Executor(2, processes=2)
    for processes in (0, -1, 10_001):
        with pytest.raises(ValueError, match="processes"):
            Executor(processes=processes)
    with pytest.raises(TypeError, match="initializer must be a callable"):
        Executor(processes=1, initializer=3)  # type: ignore[arg-type]
