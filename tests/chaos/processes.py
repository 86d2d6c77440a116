"""Processes as /proc shows them.  Any of them may end between two looks, which reads as nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path

_RLIMIT_RTTIME = 15  # the module has no name for it


def everyone() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def command(pid: int) -> bytes:
    """The words of its command line, separated by blanks."""
    return _read(pid, "cmdline").replace(b"\0", b" ").strip()


def environ(pid: int) -> bytes:
    return _read(pid, "environ")


def state(pid: int) -> str:
    """As in proc(5): R, S, D, T, Z …; empty if there is no such process."""
    fields = _fields(pid)
    return fields[0].decode() if fields else ""


def parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else -1


def children(pid: int) -> list[int]:
    return [each for each in everyone() if parent(each) == pid]


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, nearest first."""
    below: dict[int, list[int]] = {}
    for each in everyone():
        below.setdefault(parent(each), []).append(each)
    found = list(below.get(pid, ()))
    for each in found:  # grows while we walk it
        found += below.get(each, ())
    return found


def describe(pid: int) -> str:
    """A line about it and each of its threads and children, with what they wait for in the kernel."""
    words = command(pid).decode(errors="replace")[:200]
    lines = [f"{pid} ({state(pid)}, parent {parent(pid)}): {words}"]
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            name = _read(pid, f"task/{thread}/comm").decode(errors="replace").strip()
            place = _read(pid, f"task/{thread}/wchan").decode(errors="replace")
            lines.append(f"    thread {thread} {name}: {place}")
    lines += [f"    child {each} ({state(each)})" for each in children(pid)]
    return "\n".join(lines)


def is_marked(pid: int) -> bool:
    """Whether it belongs to an attempt, which has a limit of real-time processor time that nobody else has."""
    try:
        return resource.prlimit(pid, _RLIMIT_RTTIME) != (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    except OSError:
        return False


def kill(pid: int, wait_s: float = 30.0) -> bool:
    """SIGKILL; whether it lived until then and is dead now.  A pidfd holds it, so a reused pid is never hit."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.pidfd_open(pid)
            stack.callback(os.close, descriptor)
            if state(pid) in {"", "Z", "X"}:
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return False
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(wait_s * 1000))


def _read(pid: int, name: str) -> bytes:
    try:
        return Path("/proc", str(pid), name).read_bytes()
    except OSError:
        return b""


def _fields(pid: int) -> list[bytes]:
    return _read(pid, "stat").rpartition(b")")[2].split()
