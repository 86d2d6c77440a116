"""Tasks from a seed, and clients that submit them through every door and remember what they were told."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from tests.chaos.history import Amount, Submitted
from tests.chaos.world import World

_ANSWER_S = 20.0
_PAUSE_S = 0.1
DOORS = ("file", "http", "batch", "nameless", "both")


@dataclass(frozen=True, slots=True)
class Job:
    """What a task's job does."""

    sleep_ms: int = 10
    code: int = 0
    bad_attempts: int = 0
    grab_mib: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """One thing that a client does: tasks that go through one door together."""

    door: str
    tasks: tuple[dict[str, Any], ...]
    patient: bool  # sends again, the same, until it has an answer


def make_task(world: World, key: str, job: Job, *, call: bool = False, **fields: Any) -> dict[str, Any]:
    """A task of which a job bears witness, a program or the call of an entrypoint."""
    if call:
        params = {"ledger": str(world.ledger), "locks": str(world.locks), **asdict(job)}
        what = {"type": "ml", "entrypoint": "witness:bear", "params": params, "cwd": str(world.calls)}
    else:
        numbers = (job.sleep_ms, job.code, job.bad_attempts, job.grab_mib)
        what = {"command": [str(world.job), str(world.ledger), str(world.locks), *map(str, numbers)]}
    return {"id": key, **what, "retry_delay_s": 0.05, "grace_s": 0.5, **fields}


def orders(world: World, rng: random.Random, count: int, *, longest_ms: int = 4_000) -> list[Order]:
    """`count` orders of every kind, in a mixed order."""
    return [_order(world, rng, number, longest_ms) for number in range(count)]


def _order(world: World, rng: random.Random, number: int, longest_ms: int) -> Order:
    door = rng.choices(DOORS, weights=(35, 30, 12, 12, 11))[0]
    patient = rng.random() < 0.7
    if door == "batch":
        size = rng.randint(2, 8)
        tasks = [_task(world, rng, f"t{number}-{position}", longest_ms) for position in range(size)]
        if rng.random() < 0.5:  # a chain
            tasks = [
                {**task, "after": [tasks[position - 1]["id"]]} if position else task
                for position, task in enumerate(tasks)
            ]
        return Order(door, tuple(tasks), patient)
    task = _task(world, rng, f"t{number}", longest_ms)
    if door == "nameless":
        task = {**task, "name": task["id"]}
        del task["id"]
    return Order(door, (task,), patient and door != "nameless")


def _task(world: World, rng: random.Random, key: str, longest_ms: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"priority": rng.choice(("HIGH", "MED", "LOW")), "max_retries": 8}
    call = rng.random() < 0.35
    if call and rng.random() < 0.6:
        fields["reuse"] = True
    if rng.random() < 0.3:
        fields.update(_amount(rng, call=call))
    kind = rng.random()
    if kind < 0.57:
        job = Job(rng.choice((0, 5, 20, 100)))
    elif kind < 0.60:  # more than it may
        job = Job(60_000, grab_mib=96)
        fields.update(mem="32MiB", max_retries=rng.randint(0, 1))
    elif kind < 0.72:
        job = Job(rng.randint(300, longest_ms))
    elif kind < 0.84:  # fails at first
        job = Job(rng.choice((0, 20)), code=rng.randint(1, 90), bad_attempts=rng.randint(1, 3))
    elif kind < 0.90:  # fails for good
        job = Job(5, code=7, bad_attempts=1_000)
        fields["max_retries"] = rng.randint(0, 2)
    elif kind < 0.95:
        job = Job(60_000)
        fields.update(timeout_s=rng.choice((0.1, 0.4)), max_retries=rng.randint(0, 1))
    else:
        job = Job(10)
        fields["delay_s"] = rng.choice((0.2, 1.0))
    return make_task(world, key, job, call=call, **fields)


def _amount(rng: random.Random, *, call: bool) -> dict[str, Any]:
    """What a task asks for beside a worker; a node has several times that (`world.OFFER`)."""
    fields: dict[str, Any] = {}
    if rng.random() < 0.7:
        fields["cpus"] = rng.choice((0.5, 1, 1, 2) if call else (0.25, 1, 2, 3))  # a call with 2 starts cold
    if rng.random() < 0.5:
        fields["mem"] = f"{rng.choice((128, 256, 512))}MiB"
    if rng.random() < 0.2:
        fields["gpus"] = rng.choice((0.5, 1, 2))
    return fields


def holds(task: Mapping[str, Any]) -> Amount:
    """What it holds while it runs, by the words of the documentation: a processor, if it is a call and says nothing."""
    return Amount(
        cpus=task.get("cpus", 1.0 if task.get("type") == "ml" else 0.0),
        mib=int(task.get("mem", "0MiB").removesuffix("MiB")),
        gpus=task.get("gpus", 0.0),
    )


def _lines(task: Mapping[str, Any]) -> str:
    return "".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value)}\n" for name, value in task.items()
    )


class Clients:
    """Submits orders, `parallel` at a time, evenly over the time until `hurry`."""

    def __init__(self, world: World, given: list[Order], *, parallel: int = 4, spread_s: float = 0.0) -> None:
        self._world = world
        self._orders = list(reversed(list(enumerate(given))))
        self._pace_s = spread_s * parallel / max(1, len(given))
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self.submitted: list[Submitted] = []
        self._threads = [threading.Thread(target=self._run, name=f"client {n}", daemon=True) for n in range(parallel)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def hurry(self) -> None:
        """Submit the rest at once."""
        self._hurry.set()

    def join(self, timeout_s: float) -> bool:
        """Whether everything was submitted, and answered as far as somebody waited for the answer."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._orders:
                    return
                number, order = self._orders.pop()
            told = self._carry_out(order)
            with self._lock:
                self.submitted += [replace(each, batch=number if order.door == "batch" else None) for each in told]
            self._hurry.wait(self._pace_s)

    def _carry_out(self, order: Order) -> list[Submitted]:
        if order.door in {"file", "both"}:
            self._drop(order.tasks[0])
        acknowledged = order.door in {"file", "both"}  # a file is there until it is accepted
        if order.door != "file":
            path, body = ("/submit/batch", list(order.tasks)) if order.door == "batch" else ("/submit", order.tasks[0])
            while not (answered := self._post(path, body)) and order.patient:
                self._hurry.wait(_PAUSE_S) if not self._hurry.is_set() else threading.Event().wait(_PAUSE_S)
            acknowledged |= answered
        return [
            Submitted(
                key=task.get("id") or task["name"],
                acknowledged=acknowledged,
                max_retries=task["max_retries"],
                after=tuple(task.get("after", ())),
                holds=holds(task),
                reuse=task.get("reuse", False),
            )
            for task in order.tasks
        ]

    def _drop(self, task: dict[str, Any]) -> None:
        """A `.task` file of either form, as writers should make it: elsewhere, then renamed."""
        temporary = self._world.root / f"{task['id']}.tmp"
        temporary.write_text(json.dumps(task) if zlib.crc32(task["id"].encode()) % 2 else _lines(task))
        os.rename(temporary, self._world.queue / f"{task['id']}.task")

    def _post(self, path: str, body: Any) -> bool:
        """Whether the server said yes.  Any other end leaves open what became of it; a refusal is a defect."""
        found = self._world.address()
        if found is None:
            return False
        url, token = found
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ANSWER_S)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if answer.status in {200, 201}:
            return True
        if answer.status >= 500:
            return False
        raise AssertionError(f"a good task was refused: {answer.status} {text!r}")
