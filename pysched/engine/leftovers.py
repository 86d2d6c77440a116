"""Ends processes that an earlier incarnation of this node started and did not live to see end.

A job leads its own session and carries its identity in its environment, so what is left of it can be
found in /proc without trusting a pid that may have been reused.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator, Set
from dataclasses import dataclass

KILL_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What the environment of a job says of it."""

    task_id: str
    attempt: int
    node: str


def end_leftovers(identities: Set[Identity]) -> int:
    """Kill every process that carries one of `identities`; returns how many there were when all are gone.

    KILL at once: the attempt is over as far as the store is concerned, and a process that lingers would run
    beside its own retry.  Repeated until a scan finds none, since a process may fork while we look.
    """
    killed = 0
    while descriptors := list(_marked(identities)):
        killed += len(descriptors)
        for descriptor in descriptors:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        _await_exits(descriptors)
    return killed


def _marked(identities: Set[Identity]) -> Iterator[int]:
    """A pidfd for each live process that carries one of `identities`."""
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        if _identity(name) not in identities:
            continue
        try:
            descriptor = os.pidfd_open(int(name))
        except ProcessLookupError:
            continue
        # Once more, now that the pidfd holds the process: between the two looks the pid may have changed hands.
        if _identity(name) in identities:
            yield descriptor
        else:
            os.close(descriptor)


def _identity(pid: str) -> Identity | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
    except OSError:  # gone, or not ours
        return None
    try:
        return Identity(
            environ[b"PYSCHED_TASK_ID"].decode(),
            int(environ[b"PYSCHED_ATTEMPT"]),
            environ[b"PYSCHED_NODE"].decode(),
        )
    except (KeyError, ValueError):
        return None


def _await_exits(descriptors: list[int]) -> None:
    """Until all are dead (a pidfd is readable then, also for a zombie) or `KILL_WAIT_S` has passed."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    waiting = set(descriptors)
    while waiting:
        ready = poller.poll(KILL_WAIT_S * 1000)
        if not ready:
            break  # stuck in the kernel; it cannot run user code any more
        for descriptor, _ in ready:
            poller.unregister(descriptor)
            waiting.discard(descriptor)
    for descriptor in descriptors:
        os.close(descriptor)
