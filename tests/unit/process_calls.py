"""Calls for `test_executor_processes.py`: worker processes import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import threading

initialized: list[object] = []


class TwoArgumentsError(Exception):
    """Cannot be made again from what `Exception` pickles."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


def identify(*values: object, **named: object) -> tuple[object, ...]:
    return (os.getpid(), *values, *sorted(named.items()))


def square(number: int) -> int:
    return number * number


def fails(message: str) -> None:
    raise ValueError(message)


def fails_without_pickle() -> None:
    raise TwoArgumentsError("one", "two")


def returns_a_lock() -> object:
    return threading.Lock()


def dies_by(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def leaves_a_child_and_dies(file: str) -> None:
    """The child has all descriptors of the process, and lives on."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    with open(file, "w") as out:
        out.write(str(pid))
    os._exit(3)


def waits_for(fifo: str) -> str:
    """Until somebody writes."""
    with open(fifo) as file:
        return file.read()


def tells(fifo: str) -> int:
    """Open the fifo, so that a reader of it goes on when this process ends; wait for ever."""
    with open(fifo, "w") as file:
        file.write(f"{os.getpid()}\n")
        file.flush()
        while True:
            signal.pause()


def initialize(*values: object) -> None:
    initialized.extend(values)


def initialized_with() -> list[object]:
    return initialized
