"""The zygote: a small process that has imported what ML jobs need, and is forked for each of them.

    zygote.py STATUS SOCKET,SOCKET,… TABLE PROBLEM MODULE…

The node starts it with inherited descriptors.  STATUS is a pipe that gets a line of JSON, `{"ready": …, "problem": …}`,
when the zygote is ready, and when it begins anew; the SOCKETs, one a lane, bring requests (the conversation is drawn in
`csrc/zygote.pyx`).  TABLE is the file of running attempts (`csrc/attempt_table.pyx`), or empty.  A PROBLEM that is not
empty says why nothing may be imported: the zygote before died of it.

    importing ──► ready ──request──► fork ──► job: environment, entrypoint or simulation, exit
        ▲           │  ◄──────────────┘
        └── exec ───┘  a file of what is imported has changed, or the import failed a second ago

It has one thread, so a fork leaves nothing half done: what starts threads when it is imported is a problem.  A job
whose zygote has a problem says so and exits with 2.  exec keeps pid and sockets: requests wait in them meanwhile.
It ends when the node closes the sockets, which the kernel does if the node dies.
"""

from __future__ import annotations

import os
import sys

if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
    del sys.path[0]  # run by path: our own programs are no top-level modules of the user's

from pysched.ml import held_hooks

held_hooks.import_without_hooks()

# Threads that a library starts when it is imported would not survive the fork: each job is told its own number.
for _variable in (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"
):  # fmt: skip
    os.environ[_variable] = "1"

import atexit  # noqa: E402
import functools  # noqa: E402
import gc  # noqa: E402
import importlib  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from array import array  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from typing import NoReturn  # noqa: E402

from pysched.ml import _sibling, entrypoint, threads  # noqa: E402
from pysched.ml.reuse import Worker  # noqa: E402

_LOOK_S = 0.05  # between two looks at the files of the imported modules, some 0.2 ms each
_RETRY_S = 1.0  # before a failed import is tried again

Words = tuple[bytes, ...]

_BIND_NOW = {"LD_BIND_NOW": "1"}  # the dynamic linker's work is not left to each job

_mirror: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # behind os.environ, beside libc's
_set_threads: list[Callable[[int], object]] = []
_threads = 1  # that libraries compute with
_random: random.Random = random.seed.__self__  # type: ignore[attr-defined]


class Sources:
    """The files of what is imported."""

    def __init__(self) -> None:
        self._files = _sibling.Files()
        self._modules = 0
        self._looked = time.monotonic()
        self.note()

    def note(self) -> None:
        """What has been imported meanwhile, as it is now."""
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str):
                self._files.add(os.fsencode(file))

    @property
    def due_s(self) -> float:
        """When to look next, by the monotonic clock."""
        return self._looked + _LOOK_S

    def changed(self, after_s: float = _LOOK_S) -> bool:
        """Whether one of them is not as it was, if the last look was so long ago."""
        now = time.monotonic()
        if now < self._looked + after_s:
            return False
        self._looked = now
        return self._files.changed()


def preload(modules: Sequence[str]) -> str | None:
    """Import `modules`; what is wrong with one of them, or None."""
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # SystemExit, too: the module decides nothing here
            said = " ".join("".join(traceback.format_exception_only(type(error), error)).split())
            return f"preload: {module!r} cannot be imported: {said}"
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            return (
                f"preload: {module!r} leaves {threads - 1} threads running, and a process with threads cannot be "
                "forked; leave it out of the setting `preload`"
            )
    if "numpy" in sys.modules:
        importlib.import_module("pysched.ml.ml_task")
    return None


def serve(
    status: int, sockets: Sequence[int], table: int, problem: str, modules: Sequence[str]
) -> tuple[Words, str | None, Sources]:
    """Fork on request; returns in each job, with its words, what is wrong with the zygote, and the files that it has
    looked at: a job shall not let go of them, which would touch each."""
    found = problem or preload(modules)
    if not _sibling.available():
        raise RuntimeError("this thread cannot be forked; the node should have known")
    _own_generators()
    sources, failed = Sources(), time.monotonic()
    _set_threads.extend(threads.setters())
    environment = tuple(name + b"=" + value for name, value in _mirror.items())
    gc.collect()
    gc.freeze()  # no job shall write to the pages of what is imported, as a collection would
    gc.disable()
    _tell(status, ready=True, problem=found)
    while True:
        try:
            words = _sibling.serve(sockets, table, round(sources.due_s * 1e9), environment, _mirror)
        except EOFError:
            os._exit(0)
        if words is not None:
            return words, found, sources
        if sources.changed() or (found and not problem and time.monotonic() - failed > _RETRY_S):
            _tell(status, ready=False, problem=None)
            os.execve(sys.executable, sys.orig_argv, {**os.environ, **_BIND_NOW})  # noqa: S606 - no shell is wanted


def _own_generators() -> None:
    """See that each job can have numbers of its own at little cost.  Seeding in full forgets the half of a pair of
    normal deviates, which else all jobs would have."""
    random.seed()
    _, (*words, position), _ = _random.getstate()
    _sibling.own_random(_random, array("I", words).tobytes(), position)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return
    numpy_random.seed()
    generator = numpy_random.mtrand._rand._bit_generator
    state = generator.state
    if state["bit_generator"] == "MT19937":
        inner = state["state"]
        _sibling.own_generator(generator.capsule, inner["key"].tobytes(), int(inner["pos"]))


def _tell(status: int, *, ready: bool, problem: str | None) -> None:
    try:
        os.write(status, json.dumps({"ready": ready, "problem": problem}).encode() + b"\n")
    except BrokenPipeError:  # the node died while we imported
        os._exit(0)


def run(words: Words, problem: str | None, worker: Worker | None) -> NoReturn:
    """Be the job, and end as a Python program does; a worker is another job then, unless it has a problem, which the
    zygote may have mended by then."""
    gc.enable()
    held_hooks.register()
    code = _perform(words, problem, worker)
    while worker is not None and problem is None and worker.end(code):
        words = worker.next()
        code = _perform(words, problem, worker)
    if worker is not None:
        code = worker.leave_result(code)
    _leave(code)


def _perform(words: Words, problem: str | None, worker: Worker | None) -> int | None:
    """The exit code; None: ^C."""
    try:
        if problem is not None:
            return entrypoint.refuse(problem)
        _reseed()
        _compute_with(threads.wanted(_mirror))
        return _call(_decoded(words), None if worker is None else worker.keep)
    except SystemExit as end:
        return _exit_code(end.code)
    except KeyboardInterrupt:
        return None
    except BaseException as error:
        traceback.print_exception(type(error), error, error.__traceback__)
        return 1


@functools.lru_cache(maxsize=8)
def _decoded(words: Words) -> Sequence[str]:
    return tuple(map(os.fsdecode, words))


def _call(words: Sequence[str], keep: entrypoint.Keep | None) -> int:
    kind, *arguments = words
    if kind == "entrypoint":
        return entrypoint.main(arguments, keep)
    task = importlib.import_module("pysched.ml.ml_task")
    return int(task.main(arguments, started=time.monotonic()))


def _reseed() -> None:
    """Generators that came with the fork, or have been used by another call, would give jobs the same numbers."""
    random_is_drawn, numpy_is_drawn = _sibling.are_drawn()
    if random_is_drawn:
        random.seed()
    if numpy_is_drawn and "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if random_is_drawn or numpy_is_drawn:
        _sibling.note_seeds()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()


def _compute_with(count: int) -> None:
    global _threads
    if count != _threads:
        for set_threads in _set_threads:
            set_threads(count)
        _threads = count


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _leave(code: int | None) -> NoReturn:
    """Wait for threads, call what waits for the exit, write what is buffered; None: die of SIGINT.

    What an interpreter does beyond that is to free memory, which for a child of a fork means to copy it first."""
    if threading.active_count() > 1 or getattr(threading, "_threading_atexits", True):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # the job may have closed it, or put None there
            code = code or 120  # as CPython
    if code is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(1 if code is None else code)


def main(arguments: Sequence[str]) -> NoReturn:
    # ^C is for the node, in whose process group we are; the fork lets a job have its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in _BIND_NOW:
        os.environ.pop(name, None)
    status, sockets, path, problem, *modules = arguments
    table = os.open(path, os.O_RDWR | os.O_CLOEXEC) if path else -1
    words, found, sources = serve(int(status), [int(socket) for socket in sockets.split(",")], table, problem, modules)
    run(words, found, Worker(sources) if _sibling.is_worker() else None)


if __name__ == "__main__":
    main(sys.argv[1:])
