"""Ends processes that an earlier incarnation of this node started and did not live to see end.

What is left of a job is known as the core knows it (`csrc/tree.pyx`), without trusting a pid that may have been
reused: by the mark in its limits, which fork and exec hand on; by its identity in the environment; and by its parents.
Where one of them is found in a leaf (`csrc/leaf.pyx`), all that is in there ends.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from pysched import delegation
from pysched.model import mark_of

KILL_WAIT_S = 5.0

_RLIMIT_RTTIME = 15  # the module has no name for it
_MARK_HARD = 1 << 62  # as in csrc/tree.pyx
_MARK_SOFT = 1 << 61


@dataclass(frozen=True, slots=True)
class Identity:
    """What the environment of a job says of it."""

    task_id: str
    attempt: int
    node: str

    @property
    def mark(self) -> int:
        return mark_of(self.task_id, self.attempt, self.node)


def end_leftovers(identities: Set[Identity], marks: Set[int] = frozenset()) -> int:
    """Kill every process of `identities`, and those that carry `marks`; returns how many there were when all are gone.

    KILL at once: the attempt is over as far as the store is concerned, and a process that lingers would run
    beside its own retry.  Repeated until a scan finds none, since a process may fork while we look, or only such as
    have survived KILL for `KILL_WAIT_S`: they are stuck in the kernel and run no code of theirs any more.
    """
    marks = marks | {identity.mark for identity in identities}
    killed: set[tuple[int, int]] = set()
    while True:
        found = dict(_leftovers(identities, marks))
        fresh = {(pid, _started(pid)) for pid in found} - killed
        for leaf in _leaves(found):
            delegation.kill(leaf, KILL_WAIT_S)
        for descriptor in found.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        _await_exits(list(found.values()))
        if not fresh:
            return len(killed)
        killed |= fresh


def _leaves(found: Mapping[int, int]) -> set[Path]:
    """The leaves that these processes are in.  Nobody else is in one: it goes to no other attempt before it is empty
    (`csrc/leaf.pyx`)."""
    leaves = {pid: delegation.leaf_of(pid) for pid in found}
    # Whoever lives still had the number when it was asked for its leaf.
    return {leaf for pid, leaf in leaves.items() if leaf is not None and not _has_ended(found[pid])}


def _leftovers(identities: Set[Identity], marks: Set[int]) -> Iterator[tuple[int, int]]:
    """(pid, pidfd) of each live process that belongs to `identities`."""
    parents = {
        pid: _parent(pid) for name in os.listdir("/proc") if name.isdigit() and (pid := int(name)) != os.getpid()
    }
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)

    def belongs(pid: int) -> bool:
        return _is_marked(pid, marks) or _identity(pid) in identities

    members = [pid for pid in parents if belongs(pid)]
    seen = set(members)
    while members:
        member = members.pop()
        offspring = [pid for pid in children.get(member, ()) if pid not in seen]
        seen.update(offspring)
        members += offspring
        try:
            descriptor = os.pidfd_open(member)
        except ProcessLookupError:
            continue
        # Once more, now that the pidfd holds the process: between the two looks the pid may have changed hands.
        known = belongs(member) or (_parent(member) == parents[member] and parents[member] in seen)
        if known and not _has_ended(descriptor):
            yield member, descriptor
        else:
            os.close(descriptor)


def _is_marked(pid: int, marks: Set[int]) -> bool:
    try:
        soft, hard = resource.prlimit(pid, _RLIMIT_RTTIME)
    except OSError:  # gone, or not ours
        return False
    return (hard >= 0 and hard ^ _MARK_HARD in marks) or (soft >= 0 and soft ^ _MARK_SOFT in marks)


def _identity(pid: int) -> Identity | None:
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


def _parent(pid: int) -> int:
    return _stat(pid, 1)


def _started(pid: int) -> int:
    """In ticks since the machine's start: together with the pid, the process."""
    return _stat(pid, 19)


def _stat(pid: int, field: int) -> int:
    """A field of proc(5) stat, counted from the state; -1: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[field])
    except OSError:
        return -1


def _has_ended(descriptor: int) -> bool:
    """Whether the process is dead, be it a zombie that nobody has collected."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(0))


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
