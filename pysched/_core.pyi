"""The native core: ready queue, lanes, processes and timers, none of which ever holds the GIL (`csrc/`).

Linux ≥5.9, x86-64 or arm64.  Everything here may be called from any thread.  Nothing here may be used after
`os.fork()`: the lanes live in the parent only, so a child gets `RuntimeError`.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeVar, final

__all__ = [
    "ALARM",
    "CAUSE_CANCEL",
    "CAUSE_LOG_LIMIT",
    "CAUSE_MEMORY",
    "CAUSE_NONE",
    "CAUSE_SHUTDOWN",
    "CAUSE_TIMEOUT",
    "EXITED",
    "ROW_ENDED",
    "ROW_LOST",
    "ROW_NEVER_RAN",
    "ROW_RUNNING",
    "ROW_STARTING",
    "SPAWN_FAILED",
    "STARTED",
    "WITHDRAWN",
    "AttemptRow",
    "AttemptTable",
    "Core",
    "Event",
    "Executor",
    "Future",
    "Histogram",
    "Launch",
    "Pattern",
    "PlainEnds",
    "Program",
    "ReadyQueue",
    "is_missing",
    "moment_of",
    "read_files",
    "remove_files",
    "scan_files",
    "utc_text",
    "write_files",
]

_T = TypeVar("_T")

# Event.kind
STARTED: Final[int]  # the attempt has a process; always delivered before its EXITED
EXITED: Final[int]  # the process is reaped, what was left of its process group is killed; of its tree, if it was ended
SPAWN_FAILED: Final[int]  # no process: `step` and `errno` say why; final for this attempt
WITHDRAWN: Final[int]  # ended while queued, by kill() or withdraw_all(); no process was ever made
ALARM: Final[int]  # what arm() asked for; `handle` is the token

# Event.cause
CAUSE_NONE: Final[int]  # 0: ended by itself
CAUSE_TIMEOUT: Final[int]  # Launch.timeout_s was over
CAUSE_CANCEL: Final[int]  # given to kill()
CAUSE_SHUTDOWN: Final[int]  # given to kill(); also of withdraw_all()
CAUSE_LOG_LIMIT: Final[int]  # it wrote more than Core's log_limit, with log_limit_ends
CAUSE_MEMORY: Final[int]  # its processes had more memory than Launch.memory

@final
class Pattern:
    """What the launches of attempts of one task have in common, checked once; the fields are those of `Launch`."""

    def __init__(
        self,
        *,
        argv: Sequence[bytes],
        candidates: Sequence[bytes],
        env: Sequence[bytes],
        cwd: bytes,
        timeout_s: float | None = None,
        grace_s: float = 5.0,
    ) -> None: ...
    @property
    def argv(self) -> tuple[bytes, ...]: ...
    @property
    def candidates(self) -> tuple[bytes, ...]: ...
    @property
    def env(self) -> tuple[bytes, ...]: ...
    @property
    def cwd(self) -> bytes: ...
    @property
    def timeout_s(self) -> float | None: ...
    @property
    def grace_s(self) -> float: ...

@final
class Program:
    """An attempt before it has its launch: the pattern of its task, and what is its own.

    Its files are `stem` with each of four `names` behind it: stdout, stderr, result, progress.  `more` are entries of
    the environment behind those by which it knows itself; `warm`, `reuse`: see `Launch`.
    """

    def __init__(
        self,
        pattern: Pattern,
        task_id: str,
        attempt: int,
        node: str,
        stem: str,
        names: tuple[str, str, str, str],
        more: list[bytes] | None = None,
        *,
        warm: bool = False,
        reuse: int = 0,
    ) -> None: ...
    @property
    def pattern(self) -> Pattern: ...
    @property
    def env(self) -> list[bytes]:
        """b"NAME=value", behind those of the pattern."""
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...
    @property
    def result(self) -> str: ...
    @property
    def progress(self) -> str: ...
    @property
    def mark(self) -> int:
        """`pysched.model.mark_of` the attempt."""
    @property
    def warm(self) -> bool: ...
    @property
    def reuse(self) -> int: ...

@final
class Launch:
    """What one attempt needs to start; immutable.

    handle       identity chosen by the caller, 0 … 2**64-1, unique among the attempts not yet ended
    priority     0 HIGH, 1 MED, 2 LOW
    rank         int32, larger first inside a priority
    sequence     0 … 2**64-1, smaller first inside a rank
    argv         at least one word
    candidates   paths of the executable, tried in order as execvp does (a file without a known format runs
                 under /bin/sh); at least one
    env          b"NAME=value" entries, the whole environment; the core adds PYSCHED_LANE=<lane number>
    cwd          folder to start in
    stdout/stderr  files, created 0640 if missing, appended to, last component no symbolic link; b"/dev/null" is fine
    timeout_s    seconds until TERM is sent to the tree (see Core.kill), > 0; None: no limit
    grace_s      seconds between that TERM and KILL, ≥ 0; 0 sends KILL at once
    waited_s     seconds it has waited elsewhere, ≥ 0; counts in Event.wait_ns and towards Core's ageing_s
    token        0 … 2**64-1, unique among the rows of Core's `table`, where the attempt gets one; 0: none
    mark         0 … 2**61-1, by which every descendant is known (`csrc/tree.pyx`): unique on this machine, and best
                 the same for whoever must find what is left of the attempt; 0: the core makes one
    warm         forked by the zygote (Core.meet_zygote) instead of executed: argv says what it calls, candidates are
                 not looked at
    cpus, memory, gpus  what it holds while it runs: thousandths of a processor, bytes, thousandths of a GPU (of one up
                 to 1000, else whole ones); 0: nothing.  It is ended, at once, when its processes have more memory
                 (`csrc/memory.pyx`).  It gets CUDA_VISIBLE_DEVICES for its GPUs.
    reuse        0 … 2**64-1; not 0: a warm attempt whose process may make the calls of further attempts with the same
                 number, one after the other (`csrc/worker.pyx`)

    Raises `ValueError` (names the field) for a NUL byte, an empty argv, candidates or path, a number out of range,
    and `TypeError` for anything that is not of the annotated type.
    """

    def __init__(
        self,
        *,
        handle: int,
        priority: int,
        rank: int,
        sequence: int,
        argv: Sequence[bytes],
        candidates: Sequence[bytes],
        env: Sequence[bytes],
        cwd: bytes,
        stdout: bytes,
        stderr: bytes,
        timeout_s: float | None = None,
        grace_s: float = 5.0,
        waited_s: float = 0.0,
        mark: int = 0,
        token: int = 0,
        warm: bool = False,
        cpus: int = 0,
        memory: int = 0,
        gpus: int = 0,
        reuse: int = 0,
    ) -> None: ...
    @staticmethod
    def for_attempt(
        pattern: Pattern,
        env: Sequence[bytes],
        handle: int,
        priority: int,
        rank: int,
        sequence: int,
        stdout: bytes,
        stderr: bytes,
        waited_s: float,
        mark: int,
        token: int,
        warm: bool = False,
        reuse: int = 0,
        demand: tuple[int, int, int] | None = None,
    ) -> Launch:
        """The same of a pattern, whose environment `env` follows; a third of the price.  `demand`: cpus, memory, gpus.
        A number out of range may also be an `OverflowError`."""
    @property
    def handle(self) -> int: ...
    @property
    def priority(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def argv(self) -> tuple[bytes, ...]: ...
    @property
    def candidates(self) -> tuple[bytes, ...]: ...
    @property
    def env(self) -> tuple[bytes, ...]: ...
    @property
    def cwd(self) -> bytes: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...
    @property
    def timeout_s(self) -> float | None: ...
    @property
    def grace_s(self) -> float: ...
    @property
    def waited_s(self) -> float: ...
    @property
    def mark(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def warm(self) -> bool: ...
    @property
    def cpus(self) -> int: ...
    @property
    def memory(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def reuse(self) -> int: ...

@final
class Event:
    """Something that happened to one attempt, or an alarm; immutable.  Fields that do not apply are 0 (step: None)."""

    def __init__(
        self,
        kind: int,
        handle: int,
        *,
        lane: int = 0,
        pid: int = 0,
        status: int = 0,
        cause: int = 0,
        errno: int = 0,
        step: str | None = None,
        queued_ns: int = 0,
        started_ns: int = 0,
        ended_ns: int = 0,
        wait_ns: int = 0,
        run_ns: int = 0,
        cpu_ns: int = 0,
        max_rss_kb: int = 0,
        survivors: int = 0,
        kill_ns: int = 0,
        left_output: bool = True,
        left_result: bool = True,
        result: bytes | None = None,
    ) -> None: ...
    @property
    def kind(self) -> int: ...
    @property
    def handle(self) -> int:
        """Launch.handle; of an ALARM the token."""
    @property
    def lane(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def status(self) -> int:
        """EXITED: raw wait status, for os.waitstatus_to_exitcode(); -1 if somebody else reaped it (errno ECHILD)."""
    @property
    def cause(self) -> int: ...
    @property
    def errno(self) -> int: ...
    @property
    def step(self) -> str | None:
        """SPAWN_FAILED: which step failed: clone, session, stdin, stdout, stderr, cwd, limits, exec."""
    @property
    def queued_ns(self) -> int:
        """Submitted; ns since the epoch (CLOCK_REALTIME)."""
    @property
    def started_ns(self) -> int:
        """Process made; ns since the epoch."""
    @property
    def ended_ns(self) -> int:
        """Reaped, failed or withdrawn; ns since the epoch."""
    @property
    def wait_ns(self) -> int:
        """Submitted → started, failed or withdrawn, on CLOCK_BOOTTIME: clock jumps do not change it.  Plus
        Launch.waited_s."""
    @property
    def run_ns(self) -> int:
        """Started → reaped, on CLOCK_BOOTTIME."""
    @property
    def cpu_ns(self) -> int:
        """EXITED: user + system time of the process and the children it waited for."""
    @property
    def max_rss_kb(self) -> int:
        """EXITED: peak resident set of the largest of them, KiB (of all at a time, where Launch.memory says that they
        are looked at and that is more); 0 if that is not above this process's own peak at the
        start, which Linux counts in (a vfork-style child begins in its parent's memory)."""
    @property
    def survivors(self) -> int:
        """EXITED: processes of the tree that did not die within 5 s of KILL; their worker is withheld, and the handle
        in use, until they do.  `status` is then what is known of the leader."""
    @property
    def kill_ns(self) -> int:
        """EXITED: from KILL to the end of the last process of the tree; 0: none was sent, or something survives."""
    @property
    def left_output(self) -> bool:
        """EXITED: False if there are no log files any more, since a reused worker's call wrote nothing into them."""
    @property
    def left_result(self) -> bool:
        """EXITED: False if the file for the result need not be looked at, nor that for the progress."""
    @property
    def result(self) -> bytes | None:
        """EXITED, not `left_result`: what the job left as its result, JSON as far as it knows."""

# AttemptRow.state
ROW_STARTING: Final[int]  # no program was started yet as far as one knows; `pid` 0: surely none
ROW_RUNNING: Final[int]
ROW_ENDED: Final[int]
ROW_NEVER_RAN: Final[int]  # its process ended before it had become the program
ROW_LOST: Final[int]  # it ran under an earlier guard: how it ends, nobody will know

@final
class AttemptRow:
    """What stands of one attempt in an `AttemptTable`; a copy."""

    @property
    def state(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def token(self) -> int: ...
    @property
    def mark(self) -> int:
        """By which its processes are known, also those that outlive the leader."""
    @property
    def started_ns(self) -> int:
        """CLOCK_BOOTTIME."""
    @property
    def since_ns(self) -> int:
        """When the process that wrote last started or adopted it; CLOCK_BOOTTIME."""
    @property
    def ending(self) -> bool:
        """It was told to end: what survives the leader had its grace, and must end."""
    def end(self, handle: int) -> Event:
        """EXITED, as its lane would have told it; status -1 (errno ECHILD) if the row does not say how it ended."""

@final
class AttemptTable:
    """The attempts that run on a home, in a file: what a process that comes after a killed one knows of them.

    One process at a time writes attempts (a Core's `table`), and its parent, the guard, writes the ends of those that
    the other left.  Drawn and argued in `csrc/attempt_table.pyx`.
    """

    @staticmethod
    def begin(path: str, guard: bytes) -> None:
        """The guard named by these 16 bytes takes over the file, or makes it; what ran under the one before is lost."""
    def __init__(self, path: str, guard: bytes, *, rows: int = 0) -> None:
        """Open it, with room for at least `rows` rows, and if that is not 0 for results of reused workers' calls, in
        `PATH.results`.  `OSError`; `ValueError`: it is of another version, of another guard, or of an earlier start of
        the machine."""
    def rows(self) -> list[AttemptRow]: ...
    def row(self, token: int) -> AttemptRow:
        """`KeyError`: there is none."""
    def release(self, tokens: Iterable[int]) -> None:
        """Forget attempts; those of which there is no row are passed over."""
    def collect(self, pid: int) -> bool:
        """Collect a child of this process that has ended; first, if it leads an attempt, write its end into the row and
        kill what it left in its group.  Whether it led one."""
    @property
    def capacity(self) -> int: ...
    def __len__(self) -> int: ...

@final
class Core:
    """`lanes` native threads (1 … 256) that run at most `workers` (1 … 1,000,000) attempts at once.

    An attempt that has waited `ageing_s` for each priority above its own is overdue: it then comes right after HIGH,
    and of each four starts one goes to an overdue attempt first.  0: never.

    Raises `ValueError` for numbers out of range, `OSError` when the kernel lacks something needed.
    Raises the soft limit of open files of this process to the hard one; children get the original back.
    Children begin with no signal blocked, handled or ignored, but those that this process ignores only later.

    subreaper       this process adopts, and collects, the orphans of attempts while the Core is open (prctl(2)); for a
                    process that is a node, not for one that merely uses an executor
    log_limit       bytes each of stdout and stderr of an attempt may have (0: no limit); of a longer file the head is
                    kept, and a line that says so
    log_limit_ends  such an attempt is ended, too
    table           where each attempt with a token gets a row; the caller releases it, when its end is durable
    cpus, memory    what attempts may hold at a time: thousandths of a processor, bytes; None: more than anybody asks
                    for
    gpus            names of up to 64 GPUs, as CUDA_VISIBLE_DEVICES takes them
    affinity        attempts that ask for processors are pinned to some of their own (`csrc/processors.pyx`)
    cgroup          folder of a cgroup (v2) that is this Core's own, below that of this process: attempts are born in
                    leaves of it, and ended by the kernel (`csrc/leaf.pyx`); None, or a kernel that cannot: they are
                    looked for in /proc.  Warm ones always are.
    limited         such a folder that hands out the memory controller: those of attempts that ask for memory; at the
                    limit the kernel ends them.  None: their memory is watched.
    guard           (pid, eventfd) of this process's parent, which writes to that after it has written ends into the
                    table; if it has died, nothing is adopted
    """

    def __init__(
        self,
        *,
        lanes: int,
        workers: int,
        ageing_s: float = 0.0,
        subreaper: bool = False,
        log_limit: int = 0,
        log_limit_ends: bool = False,
        table: AttemptTable | None = None,
        guard: tuple[int, int] | None = None,
        cpus: int | None = None,
        memory: int | None = None,
        gpus: Sequence[bytes] = (),
        affinity: bool = False,
        cgroup: str | os.PathLike[str] | None = None,
        limited: str | os.PathLike[str] | None = None,
    ) -> None: ...
    def submit(self, launches: Sequence[Launch]) -> None:
        """Queue all or, on `ValueError` (a handle is in use, or more is asked for than this Core has) or `RuntimeError`
        (closed), none.

        An attempt that comes to its turn when what it asks for is not free waits for it; the others go on, but only
        such as leave it able to start once what ran before has ended (`csrc/admission.pyx`)."""
    def adopt(self, launch: Launch) -> bool:
        """Go on with an attempt whose row (`launch.token`) says that it runs: STARTED, then EXITED as of one's own, by
        the times, the timeout and the begun end of its row, and at the cost of a worker.  The process must be a child
        of this process's parent, which collects it (`AttemptTable.collect`); False: it is not.  EXITED has the status
        -1 (errno ECHILD) if the parent ends first.  argv, candidates and timeout_s of the launch are not looked at."""
    def kill(self, handle: int, grace_s: float, cause: int) -> bool:
        """End an attempt.  Queued: it becomes WITHDRAWN.  Running: TERM (and CONT) to its whole tree now, KILL after
        `grace_s` (0: KILL at once); its EXITED comes when nothing is left of the tree, and carries `cause`, unless an
        earlier kill or timeout gave another.
        False: unknown or already ended."""
    def arm(self, delay_s: float, token: int) -> None:
        """Deliver an ALARM with `token` (0 … 2**64-1) after `delay_s` seconds of CLOCK_BOOTTIME."""
    def poll(self, timeout_s: float | None, limit: int = 4096) -> list[Event]:
        """Up to `limit` events in order, waiting at most `timeout_s` (None: for ever) for the first, without the GIL.
        [] after a timeout, wake() or close().  Signal handlers run while it waits in the main thread."""
    def poll_ends(
        self,
        timeout_s: float | None,
        held: Mapping[int, Any],
        texts: Callable[[bytes], tuple[str, bytes] | None],
        limit: int = 4096,
    ) -> tuple[list[Event], PlainEnds]:
        """The same, but plain ends of attempts that are `held` (`pysched.engine.attempts.Held`, by handle) come apart;
        of those no event says any more that they started.  `texts`: of a result its JSON for the store and for its
        `.done` file; None: that end is not plain."""
    def wake(self) -> None:
        """Make a waiting poll(), or else the next one, return at once."""
    def meet_zygote(self, sockets: Sequence[int]) -> None:
        """Hand each lane its connection to a new zygote, a SOCK_SEQPACKET descriptor that is the core's from then on.

        Warm attempts wait, starting, while there is none.  What was asked of the zygote before and was not answered
        is asked again.  Raises `ValueError` unless there is one socket for each lane."""
    def awaits_zygote_s(self) -> float:
        """How long some request may have been unanswered by the zygote: 0.0 if there is none."""
    def withdraw_all(self) -> int:
        """Every queued attempt becomes WITHDRAWN (cause CAUSE_SHUTDOWN); how many."""
    def set_workers(self, workers: int) -> None:
        """New limit; running attempts beyond a smaller one go on."""
    def counters(self) -> dict[str, int]:
        """Totals since construction: submitted, started, exited, failed (nonzero or signal), timed_out (timeout
        passed), killed (by kill(), while running), withdrawn, spawn_failed, backed_off (transient spawn failures)."""
    def histograms(self) -> dict[tuple[Literal["wait", "run"], int], Histogram]:
        """By (kind, priority), since construction: how long attempts waited before their start (Launch.waited_s
        included), and how long they ran.  Reading stops no lane; `since` gives what came between two readings."""
    def depths(self) -> tuple[int, int, int]:
        """Waiting attempts by priority (HIGH, MED, LOW)."""
    def resources(self) -> tuple[int, int, int, int]:
        """What a further attempt could hold at once (cpus, memory, gpus), without keeping those from starting that run
        and wait already (below 0: these want more than there is); and how many wait that ask for something."""
    @property
    def running(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def workers(self) -> int: ...
    def close(self) -> None:
        """Stop and join the lanes; idempotent.  Running children are NOT ended; events not yet polled can still be
        polled, later ones never come."""

@final
class PlainEnds:
    """Ends of first attempts that exited by themselves, left no file, and are not tried again (`csrc/plain.pyx`): of
    each there is nothing to say but its exit code, its times, what it used, and a result that came with it.  One thread
    at a time."""

    def take_in(self, others: PlainEnds) -> None: ...
    def events(self) -> list[tuple[Event, Any]]:
        """Each as it would have come from poll(), with what was held."""
    def keys(self) -> list[Any]:
        """The `AttemptKey` of each."""
    def handles(self) -> list[int]: ...
    def tokens(self) -> list[int]: ...
    def waits_ms(self) -> list[int]:
        """From acceptance to process."""
    def runs_ms(self) -> list[int]: ...
    def tally(self) -> dict[tuple[str, int], int]:
        """How many of each (state of the task, priority)."""
    def ids(self, failed: bool) -> bytes:
        """text[] in PostgreSQL's binary form, of the tasks that failed, or succeeded."""
    def columns(self) -> dict[str, bytes]:
        """Arrays in PostgreSQL's binary form, ordered by id: ids, tokens, pids, starts, ends, runs_ms, exit_codes,
        cpu_ms, max_rss_kb, stdouts, stderrs, results."""
    def write_done(self, folder: str | os.PathLike[str], node: str) -> None:
        """Their `.done` files, as `write_files`; `node`: the incarnation that ran them."""
    def __len__(self) -> int: ...

@final
class Histogram:
    """Durations in ns, in cells that err by at most 1/128 of the value, at any size of it up to nine years; 27 KiB
    whatever it holds.  `pysched.engine.twin.Histogram` is the same in Python."""

    def __init__(self) -> None: ...
    def record(self, ns: int, times: int = 1) -> None: ...
    def merge(self, other: Histogram) -> Histogram:
        """A new one that holds what both do."""
    def since(self, earlier: Histogram) -> Histogram:
        """A new one of what came after `earlier`, which is an earlier reading of the same; else `ValueError`."""
    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> float | None:
        """None if it is empty."""
    def quantile(self, q: float) -> int | None:
        """The nearest-rank quantile, 0 < q ≤ 1; None if it is empty."""
    def cells_in_use(self) -> list[tuple[int, int, int]]:
        """(first ns, ns after the last, how many) of each cell that is not empty, ascending."""

@final
class ReadyQueue:
    """The ready queue alone: `lanes` (1 … 256) × three priorities of buckets ordered by (rank descending, sequence
    ascending).  `ageing_s` is as for `Core`; a `now_ns` stands for CLOCK_BOOTTIME where time is simulated, and must not
    go back.  `pysched.engine.twin.ReadyQueue` is the same in Python."""

    def __init__(self, lanes: int, ageing_s: float = 0.0) -> None: ...
    def push(
        self, priority: int, rank: int, sequence: int, handle: int, lane: int = -1, now_ns: int | None = None
    ) -> None:
        """Queue `handle` (0 … 2**64-1).  lane -1: the one with fewer waiting of two neighbours, which rotate with
        each such push, the first if equal."""
    def pop(self, lane: int, now_ns: int | None = None) -> int | None:
        """The next handle for `lane`: of each priority its own bucket first, then the following lanes' in turn;
        what is overdue comes after HIGH, and each fourth time before it."""
    def depths(self) -> tuple[int, int, int]: ...
    def __len__(self) -> int: ...

class Future(concurrent.futures.Future[_T]):
    """What `Executor.submit` returns: in all that can be seen the standard future; its condition and its lists are made
    when something first asks for them."""

class Executor(concurrent.futures.Executor):
    """A `concurrent.futures.Executor` of up to `workers` (1 … 100,000; 8) threads, which start as calls come.

    Calls start by priority, then rank (larger first), then arrival; those of this object have `Priority.MED`, rank 0.
    `initializer(*initargs)` runs first in each thread; if it raises, what waits fails with `BrokenExecutor`, and so
    does submit().  shutdown() in one of the executor's own threads never waits.  Calls already accepted are made,
    whether the executor is shut down, dropped, or the interpreter exits.  In a child of `os.fork()` it is broken.

    With `processes` (1 … 10,000), in place of `workers`, the calls are made in that many processes: functions,
    arguments and results are pickled, `initializer` runs first in each process.  A process that dies fails the call it
    was making with `concurrent.futures.process.BrokenProcessPool` and no other; `pysched/processes.py` has the rest.

    Raises `ValueError` for a number out of range, `TypeError` for an initializer that cannot be called and for both
    `workers` and `processes`.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        processes: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None: ...
    def at(self, priority: int, rank: int = 0) -> Executor:
        """This executor under another order: what is submitted to the view has `priority` (0 HIGH, 1 MED, 2 LOW) and
        `rank` (int32).  Shutting down a view shuts down the executor."""

def write_files(folder: str | os.PathLike[str], files: Iterable[tuple[str | bytes, bytes]]) -> None:
    """Make or replace the files (name, content) in `folder`, durably and without the GIL.

    Each is on the disk under `.NAME.tmp` before it gets its name, and the folder is synced once, so a reader or a crash
    sees all of a file or none of it.  No name stands twice.  Raises OSError naming the file, or the folder; then some
    may have been written, and no temporary name is left."""

def is_missing(path: str) -> bool:
    """Whether there is nothing at `path`, not even a dangling link; False if that cannot be told.  A third of the price
    of an exception that says it."""

def moment_of(epoch_ns: int) -> datetime:
    """Nanoseconds since 1970, not before, as a moment in UTC; what is below a microsecond is dropped."""

def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC, with all six digits and a Z.  ValueError for a moment that knows no zone."""

def scan_files(folder: str | os.PathLike[str], suffix: str, most: int) -> list[tuple[str, int, int, int, int]]:
    """At most so many files (name, device, inode, mtime in ns, size; of whatever type) in `folder` whose names end so
    and begin with no dot, by mtime and name, without the GIL.  OSError if the folder cannot be read."""

def read_files(
    folder: str | os.PathLike[str], files: Sequence[tuple[str, int, int, int, int]], limit: int
) -> list[bytes | None]:
    """The contents of the files (name, device, inode, mtime in ns, size) in `folder`, without the GIL; None for each
    that is not plainly to be had: gone, another version, no regular file, empty, longer than `limit` (≤1 MiB), refused,
    or perhaps being written."""

def remove_files(folder: str | os.PathLike[str], files: Sequence[tuple[str, int, int, int, int]]) -> list[bool]:
    """Remove the files (as above) from `folder`, without the GIL; False for each that is gone, another version, or
    cannot be removed."""
