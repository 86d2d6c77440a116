"""Forks jobs that are children of the process that started this one (`csrc/_sibling.pyx`).  glibc on Linux only."""

from collections.abc import Sequence

__all__ = [
    "WORKER_SOCKET", "available", "end", "is_drawn", "is_worker", "next_call", "own_generator", "peak_kb", "serve",
    "wait",
]  # fmt: skip

WORKER_SOCKET: int
"""Of a worker: the descriptor on which its calls come."""

def available() -> bool:
    """Whether `serve` can do its work here; it must be asked, and said yes, by the thread that forks."""

def own_generator(capsule: object, key: bytes, position: int) -> bool:
    """Seed a generator of numpy's (`MT19937().capsule`) in each job; False: it is not laid out as we know it.

    `key` and `position` are what it says of its state.
    """

def is_drawn() -> bool:
    """In a job: whether that generator may not be as it was seeded."""

def wait(sockets: Sequence[int]) -> bool:
    """Until one of them has a request, or its other end is closed; False: a signal came."""

def serve(
    sockets: Sequence[int], table: int, until_ns: int, environment: tuple[bytes, ...], mirror: dict[bytes, bytes]
) -> tuple[bytes, ...] | None:
    """Fork a job for each request.  In the job its words; in the zygote None, once one waits and CLOCK_MONOTONIC is
    past `until_ns`.

    `table` is the file of running attempts, into whose row the job writes its pid; -1: there is none.
    The job has its own session, logs, folder and limits, and no descriptor above 2, a worker none above WORKER_SOCKET.
    Its environment is the request's: what differs from `environment`, entries `NAME=value` that are the zygote's, is
    changed for libc and in `mirror`, the dictionary behind `os.environ`.
    The process must have one thread.  Raises `EOFError` when the node has closed its end.
    """

def is_worker() -> bool:
    """In a job: whether it may make further calls."""

def end(code: int) -> bool:
    """In a worker: say that the call has ended with an exit code; False: nobody hears it."""

def peak_kb() -> int:
    """The most that this process has had resident."""

def next_call(mirror: dict[bytes, bytes]) -> tuple[bytes, ...] | None:
    """In a worker: take what the node sent, and if it is a call that can be made here, begin it: its words.  Its
    environment is this process's then.

    Raises `EOFError(known)` when there will be no more; `known`: the node has noted the end of the last call.
    """
