"""The cgroup (v2) in which a node makes leaves for its attempts, where this user may: how it is found, made, tidied.

::

    our own cgroup/                  the guard and the node are in it; where it is ours to write, it is *delegated*
        pysched-HOME/                one a home, locked by the node that has it
            1/  2/  3/ …             leaves: one for each running attempt, used again (`csrc/leaf.pyx`)
        pysched-HOME.limited/        those with a limit of memory
        pysched.self/                guard, node, API and server of the database, if there are limits of memory

A cgroup that hands out controllers holds no processes, so for the sake of limits ours move a level down; if others are
in our own cgroup, it stays as it is, and memory is watched (`csrc/memory.pyx`).

What is removed here is removed by rmdir alone, which takes nothing in which a process is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
from collections.abc import Iterator
from pathlib import Path

SELF = "pysched.self"  # csrc/leaf.pyx knows it, too
_PREFIX = "pysched-"
_TRIES = 10  # to move all of ours, who may fork meanwhile
_OWN = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")
_TOO_OLD = "the kernel has no cgroup.kill, which came with Linux 5.14"


class NotDelegated(Exception):
    """Why no leaves can be made here."""


def own_cgroup() -> Path:
    """The folder of the cgroup that this process is in, or was before it moved to `SELF`; `NotDelegated`: there is
    none."""
    path = _cgroup(_OWN)
    if path is None:
        raise NotDelegated("the kernel has no cgroups of version 2")
    place = _place(path.removesuffix(f"/{SELF}") or "/")
    if place is None:
        raise NotDelegated("no cgroups of version 2 are mounted here")
    return place


def leaf_of(pid: int) -> Path | None:
    """The leaf, of whichever home, that a process is in, or was when it ended; None: it is in none, or is gone."""
    path = _cgroup(Path(f"/proc/{pid}/cgroup"))
    found = path and re.match(rf"(.*/{_PREFIX}[^/]+/\d+)(/|$)", path)
    return _place(found[1]) if found else None


def kill(leaf: Path, wait_s: float) -> None:
    """End all that is in a leaf, and wait until nobody is, but no longer than that."""
    with contextlib.suppress(OSError), (leaf / "cgroup.events").open() as events:
        (leaf / "cgroup.kill").write_text("1")
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        while "populated 1" in events.read() and poller.poll(wait_s * 1000):
            events.seek(0)


def _cgroup(file: Path) -> str | None:
    """The path of v2 in a file like /proc/self/cgroup."""
    return next((line[3:] for line in _lines(file) if line.startswith("0::")), None)


def _place(path: str) -> Path | None:
    """The folder of a cgroup; None: it is not to be seen from here."""
    for line in _lines(_MOUNTS):
        words = line.split(" ")
        if words[words.index("-") + 1] != "cgroup2":
            continue
        root, place = _unescaped(words[3]), _unescaped(words[4])
        if path == root or path.startswith(root.rstrip("/") + "/"):
            return Path(place, path[len(root.rstrip("/")) :].lstrip("/"))
    return None


def check() -> Path:
    """Our own cgroup; `NotDelegated`: no leaves can be made in it."""
    own = own_cgroup()
    for path in (own, own / "cgroup.procs"):  # who is to be born below it is looked at as if it moved there from here
        if not os.access(path, os.W_OK, effective_ids=True):
            raise NotDelegated(f"{own} is not ours to write")
    if (own / "cgroup.events").exists() and not (own / "cgroup.kill").exists():  # a root has neither
        raise NotDelegated(_TOO_OLD)
    if os.statvfs(own).f_flag & os.ST_RDONLY:
        raise NotDelegated(f"{own} is mounted to be read only")
    return own


@contextlib.contextmanager
def folder(name: str) -> Iterator[Path]:
    """The folder of the home of this name, which nobody else tidies meanwhile; `NotDelegated`."""
    own = check()
    path = own / (_PREFIX + name)
    try:
        tidy(own)
        held = _hold(path)
        if not (path / "cgroup.kill").exists():
            os.close(held)
            path.rmdir()
            raise NotDelegated(_TOO_OLD)
    except OSError as error:
        raise NotDelegated(f"{path}: {error.strerror}") from None
    try:
        yield path
    finally:
        os.close(held)
        _remove(path)


@contextlib.contextmanager
def limited_folder(name: str) -> Iterator[Path]:
    """The same for those of its leaves that have limits of memory."""
    own = check_memory()
    with contextlib.ExitStack() as stack:
        try:
            if (own / "cgroup.events").exists():  # no root, which may hand out controllers all the same
                stack.callback(_open_again, own)
                _move_down(own)
            _control(own, "+memory")
            path = stack.enter_context(folder(f"{name}.limited"))
            _control(path, "+memory")
        except OSError as error:
            raise NotDelegated(f"{own}: {error.strerror}") from None
        yield path


def _open_again(own: Path) -> None:
    """Let processes enter it once more, unless somebody has leaves with limits there."""
    with contextlib.suppress(OSError):
        _control(own, "-memory")


def check_memory() -> Path:
    """Our own cgroup; `NotDelegated`: leaves in it can have no limits of memory, whoever else is there."""
    own = check()
    if "memory" not in " ".join(_lines(own / "cgroup.controllers")).split():
        raise NotDelegated(f"{own} has no memory controller of version 2")
    return own


def _hold(path: Path) -> int:
    """A descriptor of the folder, which is made, with a lock that keeps others from tidying it."""
    while True:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it has been tidied
        fcntl.flock(held, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(held)):
                return held
        os.close(held)


def _control(folder: Path, what: str) -> None:
    (folder / "cgroup.subtree_control").write_text(what)


def _move_down(own: Path) -> None:
    """What is in our own cgroup; `NotDelegated`: others are there, too."""
    below = own / SELF
    below.mkdir(exist_ok=True)
    for _ in range(_TRIES):
        members = _members(own)
        root = os.getppid() if os.getppid() in members | _members(below) else os.getpid()  # the guard
        strangers = [pid for pid in members if not _descends(pid, root)]
        if strangers:
            raise NotDelegated(
                f"others are in {own}, too, as pid {min(strangers)}; start the scheduler in one of its own"
            )
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                (below / "cgroup.procs").write_text(str(pid))
        if not members:
            return
    raise NotDelegated(f"there are always new processes in {own}")


def _members(cgroup: Path) -> set[int]:
    return set(map(int, _lines(cgroup / "cgroup.procs")))


def _descends(pid: int, ancestor: int) -> bool:
    """Or is it, or has ended."""
    while pid not in (0, ancestor):
        fields = " ".join(_lines(Path(f"/proc/{pid}/stat"))).rpartition(")")[2].split()
        if not fields:
            return True
        pid = int(fields[1])
    return pid == ancestor


def tidy(own: Path) -> None:
    """Remove what is empty of homes that have no node now."""
    for path in own.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(held)


def _remove(path: Path) -> None:
    """With what is below it, as far as it is empty."""
    with contextlib.suppress(OSError):
        with os.scandir(path) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for each in below:
            _remove(Path(each))
        path.rmdir()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(text: str) -> str:
    """A path as proc(5) mountinfo writes it."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
