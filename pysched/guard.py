"""The guard: the process that starts a node, and keeps its jobs when the node dies.

::

    guard ──starts, passes signals on──► node ──clone──► jobs        `scheduler run`
      │ └───────────────────────────────► API                        `scheduler up`
      │
      │  the node dies: as the nearest subreaper the guard becomes the parent of the jobs
      ├─ a job ends: its end goes into its row of the table of attempts, then it is collected, then the bell rings
      └─ starts a node again, which adopts what the table lists

    node:    starting ─ready─► serving ─TERM─► ended with 0
                │                 │ ╰──USR2──► ended with HANDED_OVER ─► all down ─► exec: new code, same process
                │ error           │ error, signal
                ▼                 ▼
             give up           down ─back-off─► starting (which nothing but a stop ends any more: jobs depend on it)

The API's listening socket stays here while there is no API, see `listening`.

What a death of the guard leaves: node and API get TERM and drain; of jobs that were adopted nobody learns how they end,
they are recorded as lost.  An exec is no death: pid, children, subreaper, lock, pipes and the socket stay; what the
guard knows goes through its environment.

It is one thread and imports neither psycopg nor pydantic, fastapi or numpy: what can go wrong here must be little,
and what it weighs every node carries as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pysched import delegation
from pysched._core import AttemptTable
from pysched.errors import NodeDefect, NodeError, NodeSuperseded
from pysched.home import Home
from pysched.listening import RELOAD, Keeper
from pysched.supervisor import BACKOFF_S, QUICK_DEATHS, SCHEDULER, Child

HANDED_OVER = 75  # exit code of a node whose jobs wait for the next one

_STATE = "PYSCHED_GUARD_STATE"  # in the environment, over an exec
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SIGNALS = (*_STOPS, RELOAD, signal.SIGCHLD)
# Who sends one of these wants the node to end.  The kernel's out-of-memory killer sends KILL as well, and counts it.
_BY_SOMEBODY = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, RELOAD})
_API_GRACE_S = 5.0  # in a reload


@dataclass(slots=True)
class State:
    """What a guard keeps over its own exec."""

    token: str  # names this guard in the table of attempts, hex
    lock: int  # descriptor, which holds the home
    bell: int  # eventfd: ends were written into the table
    ready: int  # eventfd: written by a node that serves
    served: bool = False  # some node was ready once
    crashed_ns: int | None = None  # CLOCK_BOOTTIME of the last node's end, if it ended by itself
    listener: int | None = None  # descriptor: the API's socket …
    address: str = ""  # … and what it was bound for

    @property
    def descriptors(self) -> list[int]:
        return [each for each in (self.lock, self.bell, self.ready, self.listener) if each is not None]


@dataclass(frozen=True, slots=True)
class Link:
    """What a node knows of its guard; all but its pid in an option of its command line."""

    pid: int
    token: bytes
    bell: int
    ready: int
    crashed_ns: int | None

    @classmethod
    def from_text(cls, text: str, pid: int) -> Link:
        token, bell, ready, crashed_ns = text.split(":")
        return cls(pid, bytes.fromhex(token), int(bell), int(ready), int(crashed_ns) if crashed_ns else None)

    def __str__(self) -> str:
        crashed_ns = "" if self.crashed_ns is None else self.crashed_ns
        return f"{self.token.hex()}:{self.bell}:{self.ready}:{crashed_ns}"

    def serving(self) -> None:
        """The node is ready."""
        os.eventfd_write(self.ready, 1)


def guard(home: Home, names: Sequence[str]) -> int:
    """Run `scheduler NAME` for each of `names`, the node's `run` first; returns the exit code of the whole."""
    before = os.environ.pop(_STATE, None)
    if before is None:
        home.prepare()
        token = os.urandom(16)
        with home.guarded() as lock:
            AttemptTable.begin(str(home.attempts), token)
            bell, ready = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
            return Guard(home, names, State(token.hex(), lock, bell, ready)).run()
    state = State(**json.loads(before))
    for descriptor in state.descriptors:
        os.set_inheritable(descriptor, False)
    return Guard(home, names, state).run()


class Guard:
    """Use it from the main thread: it installs signal handlers."""

    def __init__(self, home: Home, names: Sequence[str], state: State) -> None:
        self._home = home
        self._children = [Child(name) for name in names]
        self._node = self._children[0]
        self._state = state
        self._keeper = Keeper(state.listener, state.address)
        self._stops = 0  # how often a stop was asked for
        self._told_late = False  # the node hears of them once it is ready
        self._reloading = False
        self._reload_ends = 0.0  # monotonic: of the API's patience
        self._node_told = False  # of the reload
        self._oom_kills: tuple[int, int | None] = (0, None)
        self._code: int | None = None  # of the whole, once it is certain

    def run(self) -> int:
        """Until told to stop, or until a node cannot be started; returns the exit code."""
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise NodeError(f"the guard cannot adopt processes: {os.strerror(ctypes.get_errno())}")
        with _signals() as arrived:
            try:
                self._collect()
                for child in self._children:
                    self._start(child)
                while self._code is None or self._living():
                    channel = self._keeper.channel
                    others = [self._state.ready, *([] if channel is None else [channel])]
                    self._react(arrived(others, self._patience_s()))
            finally:
                self._end_all()
        return self._code

    # ── what comes ────────────────────────────────────────────────────────────────────────────────

    def _react(self, numbers: bytes) -> None:
        for number in numbers:
            if number in _STOPS:
                self._stop()
            elif number == RELOAD and not self._stops and self._code is None:
                self._begin_reload()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._state.ready)
            self._served()
        self._keeper.take()
        self._collect()
        self._look_after(time.monotonic())
        if self._stops or self._code is not None:
            self._keeper.release()

    def _served(self) -> None:
        self._state.served = True
        self._state.crashed_ns = None
        if self._told_late:
            self._told_late = False
            for _ in range(self._stops):
                self._node.tell(signal.SIGTERM)

    def _stop(self) -> None:
        self._stops += 1
        for child in self._children:
            if child is not self._node or not self._told_late:
                child.tell(signal.SIGTERM)

    def _begin_reload(self) -> None:
        if not self._reloading:
            self._reloading = True
            self._reload_ends = time.monotonic() + _API_GRACE_S
            for child in self._children[1:]:
                child.tell(RELOAD)

    def _reload(self, now: float) -> None:
        """The API first: the node, which comes back, is then the last to leave the database, and lets it run."""
        others = [child for child in self._children[1:] if child.process is not None]
        if others and now >= self._reload_ends:
            for child in others:
                child.tell(signal.SIGKILL)
            self._reload_ends = math.inf
        if not others and not self._node_told:
            self._node_told = True
            self._reload_ends = math.inf  # it may have results to commit
            self._node.tell(RELOAD)
        if not self._living():
            self._exec()

    # ── ends of processes ─────────────────────────────────────────────────────────────────────────

    def _collect(self) -> None:
        """Whatever has ended.  Jobs: recorded, then collected, then the node hears of it."""
        table: AttemptTable | None = None
        children = {child.pid: child for child in self._children if child.process is not None}
        recorded = False
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                child = children.pop(ended.si_pid, None)
                if child is not None:
                    child.end_group()
                    self._ended(child)
                    continue
                table = table or self._table()
                if table is None:
                    os.waitpid(ended.si_pid, os.WNOHANG)
                else:
                    recorded |= table.collect(ended.si_pid)
        if recorded:
            os.eventfd_write(self._state.bell, 1)

    def _table(self) -> AttemptTable | None:
        """Mapped anew each time: the node lets it grow."""
        try:
            return AttemptTable(str(self._home.attempts), bytes.fromhex(self._state.token))
        except (OSError, ValueError) as error:
            _log("the table of attempts cannot be used, ends of jobs are lost", error=str(error))
            return None

    def _ended(self, child: Child) -> None:
        code = child.collect(time.monotonic())
        if code is None:
            return
        if child is self._node:
            self._node_ended(code)
        elif self._code is None and not self._stops and not self._reloading:
            if child.deaths >= QUICK_DEATHS:
                _fail_for_good(child, code)
            _log_restart(child, code)

    def _node_ended(self, code: int) -> None:
        by_itself = code == NodeDefect.exit_code or (code < 0 and self._killed_itself(-code))
        if by_itself:
            self._state.crashed_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if self._code is not None or (code == HANDED_OVER and self._reloading):
            return
        if self._stops and (code >= 0 or self._node.deaths >= QUICK_DEATHS or not self._holds_jobs()):
            self._code = 0 if code == -signal.SIGTERM else _public(code)
        elif code == 0 and len(self._children) == 1:
            self._code = 0  # somebody else told it to stop
        elif code == NodeSuperseded.exit_code or (code > 0 and not self._state.served):
            self._code = _public(code)  # it has said why
            for child in self._children:
                child.tell(signal.SIGTERM)
        elif not self._state.served and self._node.deaths >= QUICK_DEATHS:
            _fail_for_good(self._node, code)
        else:
            if self._stops:
                self._told_late = True  # to end what the dead one has left in order, it takes another
                self._node.restart_at = 0.0
            _log_restart(self._node, code)

    def _killed_itself(self, number: int) -> bool:
        return number not in _BY_SOMEBODY or (number == signal.SIGKILL and _oom_since(self._oom_kills))

    def _holds_jobs(self) -> bool:
        table = self._table()
        return table is not None and len(table) > 0

    # ── starting again ────────────────────────────────────────────────────────────────────────────

    def _look_after(self, now: float) -> None:
        if self._code is None and self._stops and self._node.process is None and not self._told_late:
            if self._holds_jobs():
                self._told_late = True
                self._node.restart_at = 0.0
            else:
                self._code = 0
        if self._code is not None:
            return
        if self._reloading and not self._stops:
            self._reload(now)
            return
        for child in self._children:
            if child.process is None and now >= child.restart_at and (child is self._node or not self._stops):
                self._start(child)

    def _start(self, child: Child) -> None:
        now, state = time.monotonic(), self._state
        try:
            if child is self._node:
                link = Link(os.getpid(), bytes.fromhex(state.token), state.bell, state.ready, state.crashed_ns)
                self._oom_kills = _oom_kills()
                child.start(now, options=["--guard", str(link)], inherited=[state.bell, state.ready])
            else:
                with self._keeper.link() as (place, inherited):
                    child.start(now, options=["--place", place], inherited=inherited)
        except OSError as error:  # the machine is short of processes or memory
            if not state.served:
                raise
            child.restart_at = now + BACKOFF_S[0] * 10
            _log("a process cannot be started, trying again", process=child.name, error=str(error))

    def _exec(self) -> None:
        """Become the code that is installed now.  If that cannot be run, go on with this one."""
        state = self._state
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # pending ones reach the new image
        self._keeper.take()
        state.listener, state.address = self._keeper.listener, self._keeper.address
        for descriptor in state.descriptors:
            os.set_inheritable(descriptor, True)
        try:
            environ = {**os.environ, _STATE: json.dumps(asdict(state))}
            os.execve(sys.executable, [*SCHEDULER, *sys.argv[1:]], environ)  # noqa: S606
        except OSError as error:
            _log("the new version cannot be started, this one goes on", error=str(error))
        for descriptor in state.descriptors:
            os.set_inheritable(descriptor, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._reloading = self._node_told = False

    # ── ends of this process ──────────────────────────────────────────────────────────────────────

    def _living(self) -> bool:
        return any(child.process is not None for child in self._children)

    def _patience_s(self) -> float:
        """Until something must be done by itself."""
        if self._code is not None:
            return 60.0
        now = time.monotonic()
        if self._reloading and not self._stops:
            return min(60.0, max(0.0, self._reload_ends - now))
        waiting = [
            child.restart_at - now
            for child in self._children
            if child.process is None and (child is self._node or not self._stops)
        ]
        return max(0.0, min(waiting, default=60.0))

    def _end_all(self) -> None:
        for child in self._children:
            child.tell(signal.SIGTERM)
        for child in self._children:
            if child.process is not None:
                child.process.wait()


def _public(code: int) -> int:
    """The exit code that a node's means to those outside."""
    return 1 if code < 0 or code in {NodeSuperseded.exit_code, NodeDefect.exit_code, HANDED_OVER} else code


def _fail_for_good(child: Child, code: int) -> None:
    raise NodeError(
        f"scheduler {child.name} ended {child.deaths} times in a row, last with {code}; see its messages above"
    )


def _log_restart(child: Child, code: int) -> None:
    _log("a process ended, starting it again", process=child.name, code=code, in_s=child.backoff_s(code))


def _log(event: str, **facts: Any) -> None:
    import structlog  # seldom needed: it weighs as much as the rest of the guard

    structlog.get_logger("guard").error(event, **facts)


def _oom_kills() -> tuple[int, int | None]:
    """How often the kernel has killed for want of memory: on this machine, and of the cgroup that is the node's and
    ours alone, if there is one; attempts at a limit of their own do not count there."""
    places = [Path("/proc/vmstat")]
    with contextlib.suppress(delegation.NotDelegated):
        places.append(delegation.own_cgroup() / delegation.SELF / "memory.events.local")
    machine, ours, *_ = [*map(_oom_kills_in, places), None]
    return machine or 0, ours


def _oom_kills_in(place: Path) -> int | None:
    with contextlib.suppress(OSError), place.open() as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), None)
    return None


def _oom_since(before: tuple[int, int | None]) -> bool:
    machine, ours = _oom_kills()
    return machine != before[0] and (ours is None or ours != (before[1] or 0))


@contextlib.contextmanager
def _signals() -> Iterator[_Arrived]:
    """Signals as bytes in a pipe: none is lost between two looks, and no handler interrupts anything."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        heard = set(_SIGNALS)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            heard.remove(signal.SIGHUP)  # under nohup
        before = {number: signal.signal(number, lambda *_: None) for number in heard}
        wakeup = signal.set_wakeup_fd(writer.fileno())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # blocked over an exec
        try:
            yield _Arrived(reader)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class _Arrived:
    reader: socket.socket

    def __call__(self, others: Sequence[int], timeout_s: float) -> bytes:
        """Numbers of the signals that arrived, waiting at most `timeout_s` for the first, or until one of `others` is
        readable."""
        ready, _, _ = select.select([self.reader.fileno(), *others], [], [], timeout_s)
        return self.reader.recv(4096) if self.reader.fileno() in ready else b""
