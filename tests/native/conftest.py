"""The native core with real processes: a `Run` starts launches, collects events and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pysched import delegation
from pysched._core import ALARM, STARTED, Core, Event, Launch

DEADLINE_S = 60.0  # of a wait for something that must come; far above what it takes


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look again and again at something outside of the core, which can tell nobody when it changes."""
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


def process_state(pid: int) -> str:
    """The letter of proc(5), e.g. T for stopped; X if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    return process_state(pid) not in "ZX"


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """This process may open so many more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)]
    while fillers[-1] < highest:  # until no number below the limit is free
        fillers.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + spare, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for filler in fillers:
            os.close(filler)


class Run:
    """A Core together with what it has told so far."""

    def __init__(self, folder: Path, lanes: int, workers: int, **options: Any) -> None:
        self.core = Core(lanes=lanes, workers=workers, **options)
        self.folder = folder
        self.events: list[Event] = []
        self._next = 1

    def launch(self, *argv: str, **given: object) -> Launch:
        """A launch of `argv`, output into files of its own; `given` overrides any field."""
        handle = given.get("handle", self._next)
        assert isinstance(handle, int)
        self._next = max(self._next, handle) + 1
        fields: dict[str, object] = {
            "handle": handle,
            "priority": 1,
            "rank": 0,
            "sequence": handle,
            "argv": [os.fsencode(word) for word in argv],
            "candidates": [os.fsencode(argv[0])],
            "env": [b"PATH=/usr/bin:/bin"],
            "cwd": os.fsencode(self.folder),
            "stdout": os.fsencode(self.folder / f"{handle}.out"),
            "stderr": os.fsencode(self.folder / f"{handle}.err"),
        }
        return Launch(**{**fields, **given})  # type: ignore[arg-type]

    def shell(self, script: str, **given: object) -> Launch:
        return self.launch("/bin/sh", "-c", script, **given)

    def python(self, script: str, *arguments: str) -> Launch:
        """A launch of this interpreter, in this process's environment, to try what is a property of a process."""
        env = [b"=".join(item) for item in os.environb.items()]
        return self.launch(sys.executable, "-c", script, *arguments, env=env)

    def submit(self, *launches: Launch) -> list[int]:
        self.core.submit(launches)
        return [launch.handle for launch in launches]

    def collect(self, enough: Callable[[list[Event]], bool]) -> list[Event]:
        """Poll until `enough` of the events so far; all events so far."""
        deadline = time.monotonic() + DEADLINE_S
        while not enough(self.events):
            assert time.monotonic() < deadline, f"waited in vain; so far {self.events}"
            self.events += self.core.poll(1.0)
        return self.events

    def started(self, handle: int) -> Event:
        self.collect(lambda events: any(e.kind == STARTED and e.handle == handle for e in events))
        return next(e for e in self.events if e.kind == STARTED and e.handle == handle)

    def end(self, handle: int) -> Event:
        return self.ends([handle])[0]

    def ends(self, handles: Sequence[int]) -> list[Event]:
        """The last events of attempts, in the order of `handles`."""
        wanted = set(handles)

        def found(events: list[Event]) -> dict[int, Event]:
            return {e.handle: e for e in events if e.kind not in (STARTED, ALARM) and e.handle in wanted}

        self.collect(lambda events: len(found(events)) == len(wanted))
        by_handle = found(self.events)
        return [by_handle[handle] for handle in handles]

    def output(self, handle: int) -> str:
        return (self.folder / f"{handle}.out").read_text()

    def close(self) -> None:
        """End what runs, then the core."""
        ended = {e.handle for e in self.events if e.kind not in (STARTED, ALARM)}
        self.core.withdraw_all()
        running = [e.handle for e in self.events if e.kind == STARTED and e.handle not in ended]
        for handle in running:
            self.core.kill(handle, 0.0, 255)
        self.ends(running)
        self.core.close()


@pytest.fixture
def leaves() -> Iterator[Path]:
    """A folder for leaves; all of them are empty after the test."""
    try:
        with delegation.folder(f"test-{os.getpid()}-{random.randrange(10**9)}") as path:
            yield path
    except delegation.NotDelegated as error:
        pytest.skip(str(error))
    assert not path.exists()


@pytest.fixture
def cgroup() -> Path | None:
    """Of each Core that is made by `start`; a module may say another one."""
    return None


@pytest.fixture
def start(tmp_path: Path, cgroup: Path | None) -> Iterator[Callable[..., Run]]:
    """A maker of `Run`s: start(lanes=, workers=, further options of Core); all are ended after the test."""
    runs: list[Run] = []

    def make(lanes: int = 1, workers: int = 8, **options: Any) -> Run:
        runs.append(Run(tmp_path, lanes, workers, **{"cgroup": cgroup, **options}))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


class Gate:
    """A FIFO that holds children back: `hold` is a shell command that waits until `open` is called."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # as a writer it keeps readers waiting
        self.hold = f"read line < {shlex.quote(str(path))}"

    def open(self) -> None:
        """Let everybody through, now and later (up to 4,096)."""
        os.write(self._fd, b"\n" * 4096)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()
