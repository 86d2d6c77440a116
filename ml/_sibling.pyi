"""Forks jobs that are children of the process that started this one (`csrc/_sibling.pyx`).  glibc on Linux only."""

from collections.abc import Sequence

__all__ = [
    "RESULT_BYTES", "Files", "are_drawn", "available", "begin", "end", "is_worker", "last_is_heard", "look",
    "note_seeds", "own_generator", "own_random", "receive", "refuse", "remove_logs", "result_path", "serve",
]  # fmt: skip

class Files:
    """Files that are looked at again and again."""

    def add(self, path: bytes) -> None:
        """As it is now; one that is known already stays as it was."""
    def changed(self) -> bool:
        """Whether one of them is not as it was: its time, its size, or that it is there."""

RESULT_BYTES: int
"""A longer result of a worker's call goes by its file."""

def available() -> bool:
    """Whether `serve` can do its work here; it must be asked, and said yes, by the thread that forks."""

def own_generator(capsule: object, key: bytes, position: int) -> bool:
    """Seed a generator of numpy's (`MT19937().capsule`) in each job; False: it is not laid out as we know it.

    `key` and `position` are what it says of its state.
    """

def own_random(generator: object, key: bytes, position: int) -> bool:
    """The same for a `random.Random`."""

def are_drawn() -> tuple[bool, bool]:
    """In a job: whether those of `own_random` and `own_generator` may not be as they were seeded."""

def note_seeds() -> None:
    """In a worker: as they are now they count as seeded."""

def serve(
    sockets: Sequence[int], table: int, until_ns: int, environment: tuple[bytes, ...], mirror: dict[bytes, bytes]
) -> tuple[bytes, ...] | None:
    """Fork a job for each request.  In the job its words; in the zygote None, once one waits and CLOCK_MONOTONIC is
    past `until_ns`.

    `table` is the file of running attempts, into whose row the job writes its pid; -1: there is none.
    The job has its own session, logs, folder and limits, and no descriptor above 2, a worker none above its socket.
    Its environment is the request's: what differs from `environment`, entries `NAME=value` that are the zygote's, is
    changed for libc and in `mirror`, the dictionary behind `os.environ`.
    The process must have one thread.  Raises `EOFError` when the node has closed its end.
    """

def is_worker() -> bool:
    """In a job: whether it may make further calls.  What follows is for those that may."""

def look() -> tuple[bool, int]:
    """What the call that ends has left: whether there are children, and the most that this process has had resident, in
    KiB.  To be asked once a call, right before `end`, which tells the node of the time that was spent until then."""

def result_path() -> bytes | None:
    """Where the node looks for the result of the call."""

def end(code: int, result: bytes | None) -> bool:
    """Say that the call has ended with an exit code and a result of at most RESULT_BYTES; False: nobody hears it."""

def receive() -> bool:
    """Wait for the next call, which must be begun or refused then; False: there is none."""

def begin(mirror: dict[bytes, bytes]) -> tuple[bytes, ...] | None:
    """Its words; its environment is this process's then.  None: it cannot be made, and the node knows why."""

def refuse() -> None:
    """Another process shall make it."""

def last_is_heard() -> bool:
    """Whether the node has noted the end of the last call."""

def remove_logs() -> None:
    """There is no next call for which the last one's empty logs could be."""
