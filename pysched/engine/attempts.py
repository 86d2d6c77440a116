"""The attempts this node holds, from claim to recorded end: the one place that maps handles to tasks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pysched._core import AttemptRow, Launch, Program
from pysched.model import AttemptKey, Claim
from pysched.resources import Demand
from pysched.task import Task


@dataclass(slots=True)
class Held:
    """One attempt in the core's hands."""

    claim: Claim
    task: Task
    program: Program
    demand: Demand | None = None  # what it holds here beside a worker
    plain: bool = False  # its end may go the short way (`csrc/plain.pyx`): a first attempt that this node itself starts

    def launch(self, handle: int, *, adopted: AttemptRow | None = None) -> Launch:
        """What the core is told of it; `adopted`: the row of a process that runs already, which says the rest."""
        claim, program = self.claim, self.program
        return Launch.for_attempt(
            program.pattern,
            program.env,
            handle,
            claim.priority,
            claim.rank,
            claim.sequence,
            program.stdout.encode(),
            program.stderr.encode(),
            claim.waited_s if adopted is None else 0.0,
            program.mark if adopted is None else adopted.mark,
            claim.key.token,
            program.warm and adopted is None,
            program.reuse,
            self.demand,
        )


class Attempts:
    """Thread-safe.  A handle is this process's name for an attempt; it is never used twice."""

    def __init__(self) -> None:
        self._handles = itertools.count(1)
        self._held: dict[int, Held] = {}
        self._by_key: dict[AttemptKey, int] = {}
        self._empty = threading.Condition()
        self.released = 0  # attempts that held something beside a worker, and ended

    def add(self, held: Held) -> int:
        with self._empty:
            handle = next(self._handles)
            self._held[handle] = held
            self._by_key[held.claim.key] = handle
            return handle

    @property
    def held(self) -> Mapping[int, Held]:
        """By handle."""
        return self._held

    def get(self, handle: int) -> Held:
        return self._held[handle]

    def remove(self, handles: Iterable[int]) -> None:
        with self._empty:
            for handle in handles:
                held = self._held.pop(handle)
                del self._by_key[held.claim.key]
                self.released += held.demand is not None
            if not self._held:
                self._empty.notify_all()

    def handles(self, keys: Iterable[AttemptKey] | None = None) -> list[int]:
        """Handles of `keys` that are still held; of all with None."""
        with self._empty:
            if keys is None:
                return list(self._held)
            return [self._by_key[key] for key in keys if key in self._by_key]

    def keys(self) -> set[AttemptKey]:
        """Of all that is held."""
        with self._empty:
            return set(self._by_key)

    def wait_empty(self, timeout_s: float | None) -> bool:
        """Whether nothing is held any more, waiting for that at most `timeout_s`."""
        with self._empty:
            return self._empty.wait_for(lambda: not self._held, timeout_s)

    def __len__(self) -> int:
        return len(self._held)
