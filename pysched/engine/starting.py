"""From a claim to the core: whatever this node is given passes here, whoever has claimed it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from pysched._core import Core, Program
from pysched.engine.attempts import Attempts, Held
from pysched.engine.specs import Specs
from pysched.errors import PyschedError
from pysched.model import AttemptKey, Claim
from pysched.resources import Demand
from pysched.task import Task

Prepare = Callable[[AttemptKey, Task, str], Program]  # the last: its params as JSON
Unstartable = Callable[[Claim, PyschedError], None]


@dataclass(slots=True)
class Ready:
    """All that an attempt needs but for its claim."""

    task: Task
    program: Program
    demand: Demand | None


class Starter:
    """Thread-safe: the dispatcher's claims come here, and what the API has given (`offers`).

    `cancel(handle)` ends an attempt as its user asked; `capacity` is what attempts may hold.
    """

    def __init__(
        self,
        core: Core,
        attempts: Attempts,
        *,
        prepare: Prepare,
        unstartable: Unstartable,
        cancel: Callable[[int], None],
        capacity: Demand,
    ) -> None:
        self._core = core
        self._attempts = attempts
        self._prepare = prepare
        self._unstartable = unstartable
        self._cancel = cancel
        self._capacity = capacity
        self._lock = threading.Lock()  # of all below, and around the step into `attempts`
        self._specs = Specs()
        self._last: tuple[Task, Demand | None] | None = None  # mostly the next one, too
        self._cancelled: set[AttemptKey] = set()  # to be cancelled, and not here yet
        self._refused: set[AttemptKey] = set()  # handed back before they came

    def ready(self, task_id: str, attempt: int, spec: str) -> Ready | PyschedError:
        """What can be done before the attempt has a token; or what is wrong with it."""
        with self._lock:
            return self._ready(AttemptKey(task_id, attempt, 0), spec)

    def start(self, claims: Sequence[Claim]) -> None:
        with self._lock:
            self._start([(claim, self._ready(claim.key, claim.spec)) for claim in claims])

    def start_ready(self, claims: Sequence[tuple[Claim, Ready | PyschedError]]) -> None:
        """The same for what was made ready; what was handed back meanwhile is left out."""
        with self._lock:
            self._start([each for each in claims if each[0].key not in self._refused])

    def cancel(self, keys: Collection[AttemptKey]) -> None:
        """`keys` is all that this node is to cancel; of those that are on their way here the cancel waits for them."""
        with self._lock:
            handles = self._attempts.handles(keys)
            self._cancelled = set(keys) - self._attempts.keys() if len(handles) < len(keys) else set()
        for handle in handles:
            self._cancel(handle)

    def refuse(self, keys: Iterable[AttemptKey], *, known: Callable[[], set[AttemptKey]]) -> list[AttemptKey]:
        """Those that are not `known`: from now on they will not be started here."""
        with self._lock:
            held = known()
            refused = [key for key in keys if key not in held]
            self._refused.update(refused)
        return refused

    def forget_refused(self) -> None:
        """Nothing that was refused can come any more."""
        with self._lock:
            self._refused.clear()

    def _ready(self, key: AttemptKey, spec: str) -> Ready | PyschedError:
        try:
            task, params = self._specs.read(spec)
            program = self._prepare(key, task, params)
        except PyschedError as error:
            return error
        if self._last is None or self._last[0] is not task:
            self._last = task, _bounded(task, self._capacity)
        return Ready(task, program, self._last[1])

    def _start(self, claims: Sequence[tuple[Claim, Ready | PyschedError]]) -> None:
        launches, cancelled = [], []
        for claim, ready in claims:
            if isinstance(ready, PyschedError):
                self._unstartable(claim, ready)
                continue
            held = Held(claim, ready.task, ready.program, ready.demand, plain=claim.key.attempt == 1)
            handle = self._attempts.add(held)
            launches.append(held.launch(handle))
            if claim.key in self._cancelled:
                cancelled.append(handle)
        self._core.submit(launches)
        for handle in cancelled:
            self._cancel(handle)


def _bounded(task: Task, capacity: Demand) -> Demand | None:
    """What an attempt holds here.  What was accepted before the store knew what tasks ask for may come to a node that
    has less: then it gets all there is."""
    demand = task.demand
    return None if demand is None else demand.at_most(capacity)
