"""Forks jobs that are children of the process that started this one (`csrc/_sibling.pyx`).  glibc on Linux only."""

from collections.abc import Sequence

__all__ = ["WORKER_SOCKET", "available", "end", "fork", "is_worker", "next_call", "wait"]

WORKER_SOCKET: int
"""Of a worker: the descriptor on which its calls come."""

def available() -> bool:
    """Whether `fork` can do its work here; it must be asked, and said yes, by the thread that forks."""

def wait(sockets: Sequence[int]) -> list[int]:
    """Those that have a request, or whose other end is closed; perhaps none, after a signal."""

def fork(socket: int, table: int) -> tuple[tuple[bytes, ...], tuple[bytes, ...]] | None:
    """Take one request and fork its job.  None in the zygote; in the job its words and its environment, `NAME=value`.

    `table` is the file of running attempts, into whose row the job writes its pid; -1: there is none.
    The job has its own session, logs, folder and limits, and no descriptor above 2, a worker none above WORKER_SOCKET.
    The process must have one thread.  Raises `EOFError` when the node has closed its end.
    """

def is_worker() -> bool:
    """In a job: whether it may make further calls."""

def end(code: int) -> bool:
    """In a worker: say that the call has ended with an exit code; False: nobody hears it."""

def next_call() -> tuple[tuple[bytes, ...], tuple[bytes, ...]] | None:
    """In a worker: take what the node sent, and if it is a call that can be made here, begin it.

    Raises `EOFError(known)` when there will be no more; `known`: the node has noted the end of the last call.
    """
