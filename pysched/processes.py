"""The worker processes of `pysched.Executor(processes=…)`: picklable calls, made in processes of their own.

Each thread of the executor has one process and is the only one to speak with it, so priorities, cancelling and the end
of the interpreter are those of the threads, and a process has one call at a time.

    thread                                    process (`serve`)
     │ ── start, at the thread's first call ──► imports __main__
     │ ── pickle of the initializer ──────────► calls it
     │ ◄── None, or why it failed ─────────────
     │ ── pickle of (function, args, kwargs) ─► calls it
     │ ◄── pickle of (result, error, traceback) ──
     │ ── end of file ────────────────────────► ends

A process that dies takes the one call with it that it was making: that future gets `BrokenProcessPool`, the thread
starts another process for its next call.  One that dies between two calls is replaced unseen.  A process whose parent
is gone ends by itself: at once, or after the call it is making.

Processes come from multiprocessing's fork server, which forks nothing that has threads.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.spawn import import_main_path
from typing import Any

INITIALIZER_FAILED = "A process initializer failed, the executor is not usable anymore"

# multiprocessing looks at all children of its caller whenever it starts one, and is not made for threads that do so
# at the same time.
_children = threading.Lock()


def _renew_lock() -> None:
    global _children
    _children = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class RemoteTraceback(Exception):
    """What a call raised, where it did: the cause of the exception that its future has."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f'\n"""\n{self._text}"""'


class Crew:
    """The processes of one executor."""

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._initializer = initializer
        self._initargs = initargs
        # CPython takes `__file__` away from __main__ when its code has run, and calls may still be to be made then.
        main = sys.modules["__main__"]
        file = getattr(main, "__file__", None)
        self._main = os.path.abspath(file) if file is not None and main.__spec__ is None else None
        self._own = threading.local()  # .worker: the thread's
        self._broken: str | None = None

    def check(self) -> None:
        if self._broken is not None:
            raise BrokenProcessPool(self._broken)

    def call(self, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> object:
        """Have this thread's process make the call; what it returns, or raises."""
        worker = self._worker()
        # In no variable: CPython 3.13 complains of a buffer that is collected with an exception and its frames.
        reply = worker.ask(ForkingPickler.dumps((function, args, kwargs or {})))
        if reply is None:
            self._own.worker = None
            raise BrokenProcessPool(f"{worker.end()} while it made this call")
        value, error, trace = pickle.loads(reply)  # noqa: S301 - from our own child
        if error is not None:
            error.__cause__ = RemoteTraceback(trace)
            raise error
        return value

    def dismiss(self) -> None:
        """End the process of this thread, which makes no more calls."""
        worker = getattr(self._own, "worker", None)
        if worker is not None:
            self._own.worker = None
            worker.end()

    def _worker(self) -> _Worker:
        worker: _Worker | None = getattr(self._own, "worker", None)
        if worker is not None and worker.is_gone():
            worker.end()
            worker = None
        if worker is None:
            self.check()
            initialization = ForkingPickler.dumps((self._initializer, self._initargs))
            worker = _Worker(self._context, self._main)
            reason = worker.ask(initialization)
            del initialization
            why = None if reason is None else pickle.loads(reason)  # noqa: S301 - from our own child
            if reason is None or why is not None:
                how = worker.end()
                self._broken = self._broken or f"{INITIALIZER_FAILED}: {why or how}"
                self.check()
            self._own.worker = worker
        return worker


class _Worker:
    """A process, as its thread sees it."""

    def __init__(self, context: Any, main: str | None) -> None:
        self._connection: Connection
        self._connection, theirs = context.Pipe()
        try:
            self._process: BaseProcess = context.Process(target=serve, args=(theirs, main))
            with _children:
                self._process.start()
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._poll = select.poll()
        self._poll.register(self._connection.fileno(), select.POLLIN)
        # A process that the worker has left behind may hold the connection open: its end is seen by this alone.
        self._poll.register(self._process.sentinel, select.POLLIN)

    def ask(self, data: Any) -> bytes | None:
        """Send `data`, wait for the reply; None: it has died."""
        try:
            self._connection.send_bytes(data)
            ready = dict(self._poll.poll())
            if self._connection.fileno() in ready:
                return self._connection.recv_bytes()
        except (EOFError, OSError):
            pass
        return None

    def is_gone(self) -> bool:
        """While it has nothing to do, there is nothing to hear of it but its end."""
        return bool(self._poll.poll(0))

    def end(self) -> str:
        """Let it end, and wait for that; how it ended."""
        self._connection.close()
        poll = select.poll()
        poll.register(self._process.sentinel, select.POLLIN)
        poll.poll()
        with _children:
            self._process.join()
            code = self._process.exitcode
            pid = self._process.pid
            self._process.close()
        if code is not None and code < 0:
            return f"the worker process {pid} ended by {_signal_name(-code)}"
        return f"the worker process {pid} ended with exit code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


# ---- the process -----------------------------------------------------------------------------------------------------


def serve(connection: Connection, main: str | None) -> None:
    """Make calls until the executor has no more; `main`: the file of the parent's __main__, if it is a file."""
    # The end of file, or ^C while there is nothing to do: the executor is gone, or will be told by it as well.
    with suppress(EOFError, OSError, KeyboardInterrupt):
        reason = _initialize(connection.recv_bytes(), main)
        connection.send_bytes(pickle.dumps(reason))
        while reason is None:
            connection.send_bytes(_make(connection.recv_bytes()))


def _initialize(data: bytes, main: str | None) -> str | None:
    """None, or why that failed."""
    try:
        if main is not None:
            import_main_path(main)  # nothing, if multiprocessing has imported it
        initializer, initargs = pickle.loads(data)  # noqa: S301 - from our own parent
        if initializer is not None:
            initializer(*initargs)
    except BaseException as error:
        traceback.print_exc()
        return "".join(traceback.format_exception_only(type(error), error)).strip()
    return None


def _make(data: bytes) -> Any:
    """The pickled reply to a pickled call."""
    value: object = None
    try:
        function, args, kwargs = pickle.loads(data)  # noqa: S301 - from our own parent
        value = function(*args, **kwargs)
        del function, args, kwargs
        return ForkingPickler.dumps((value, None, None))
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> Any:
    frames = error.__traceback__
    trace = "".join(traceback.format_exception(type(error), error, frames and frames.tb_next))  # without our own frame
    try:
        data = ForkingPickler.dumps((None, error, trace))
        pickle.loads(data)  # noqa: S301 - what cannot be read back would fail there
    except Exception as second:
        kind = type(error).__qualname__
        unfit = RuntimeError(f"{kind}: {_message(error)} (the exception itself cannot be pickled: {second})")
        data = ForkingPickler.dumps((None, unfit, trace))
    return data


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # the user's own class
        return f"<its message cannot be had: {type(second).__name__}>"


# ---- map in chunks ---------------------------------------------------------------------------------------------------


def map_in_chunks(
    map_one: Callable[..., Iterator[list[Any]]],
    function: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    chunksize: int,
) -> Iterator[Any]:
    """As `map_one(function, *iterables)`, with `chunksize` calls in each that is sent."""
    return _chained(map_one(partial(_make_chunk, function), _chunks(zip(*iterables), chunksize)))  # noqa: B905 - as map


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _make_chunk(function: Callable[..., Any], chunk: list[Any]) -> list[Any]:
    return [function(*args) for args in chunk]


def _chained(lists: Iterator[list[Any]]) -> Iterator[Any]:
    """Keeps no reference to what it has yielded."""
    for each in lists:
        each.reverse()
        while each:
            yield each.pop()
