"""One episode: a world, a workload and a schedule of faults from one seed; then peace, and the judgement."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg.rows import dict_row

from tests.chaos import checker, faults, processes
from tests.chaos.checker import Violation
from tests.chaos.faults import Fault
from tests.chaos.history import AttemptRow, DoneFile, End, History, TaskRow, read_ledger
from tests.chaos.workload import Clients, orders
from tests.chaos.world import OFFER, World, wait_for

SETTLE_S = 150.0
_AT_ONCE = 3  # faults
_ORDERS = 8  # at most, for a kill
_TRIES = 15
_CONTEXT = 40  # lines shown from a sign on
_DEFECTS = ("Traceback (most recent call last)", "this is a defect of pysched", "a thread died")


@dataclass(slots=True)
class Report:
    seed: int
    violations: list[Violation] = field(default_factory=list)
    kills: int = 0
    others: int = 0
    effects: Counter[str] = field(default_factory=Counter)  # effective faults by name
    idle: Counter[str] = field(default_factory=Counter)  # those that found nothing to hurt
    tasks: int = 0
    acknowledged: int = 0
    executions: int = 0
    again: int = 0  # executions beyond each task's first
    reused: int = 0  # executions in a process that had made a call before
    causes: Counter[str] = field(default_factory=Counter)  # of the attempts that another followed
    seconds: float = 0.0
    settled_s: float = 0.0  # from the last fault until everything had ended and stopped
    kept: str = ""  # the folder of a run that went wrong

    def __str__(self) -> str:
        hit = " ".join(f"{name}×{count}" for name, count in sorted(self.effects.items()))
        causes = " ".join(f"{name}×{count}" for name, count in sorted(self.causes.items()))
        return (
            f"seed {self.seed}: {self.kills} kills, {self.others} other faults, {self.tasks} tasks, "
            f"{self.acknowledged} acknowledged, {self.executions} executions, {self.again} again, "
            f"{self.reused} in used workers; "
            f"{len(self.violations)} violations; {self.seconds:.0f} s, "
            f"{self.settled_s:.0f} of them to come to rest\n  faults: {hit}\n  causes: {causes}"
        )


@dataclass(frozen=True, slots=True)
class Planned:
    fault: Fault
    after_s: float  # pause before it
    seed: int  # of its own choices


def plan(rng: random.Random, kills: int, *, pause: float = 1.0) -> list[Planned]:
    """A schedule with `kills` faults that kill, and others in between, about one for two kills; `pause` times as long
    apart as by default."""
    kinds = rng.choices(list(faults.KILLS), weights=list(faults.KILLS.values()), k=kills)
    kinds += rng.choices(list(faults.OTHERS), weights=list(faults.OTHERS.values()), k=kills // 2)
    rng.shuffle(kinds)
    return [Planned(fault, pause * rng.choice((0.05, 0.2, 0.5, 1.0, 1.5)), rng.getrandbits(32)) for fault in kinds]


def run(seed: int, kills: int, *, tasks: int | None = None, pause: float = 1.0) -> Report:
    """Everything follows from the seed, except for what the operating system's scheduler decides."""
    began = time.monotonic()
    rng = random.Random(seed)
    report = Report(seed)
    schedule = plan(rng, kills, pause=pause)
    nodes, workers = rng.randint(1, 3), rng.choice((2, 4, 8))
    # As many orders a kill as are worked off in the time until the next one.
    count = kills * min(_ORDERS, nodes * workers) if tasks is None else tasks
    with World(nodes=nodes, workers=workers, small_disks=True, clocks=True) as world:
        work = orders(world, rng, count)
        clients = Clients(world, work, spread_s=sum(planned.after_s for planned in schedule))
        clients.start()
        _inject(world, schedule, report, clients)
        judge(world, clients, report)
    require_faults(report)
    report.seconds = time.monotonic() - began
    return report


def require_faults(report: Report) -> None:
    """A run in which nothing went wrong is no proof."""
    if not report.kills and not report.others:
        report.violations.append(Violation("no fault", "-", "not one fault had an effect: this run proved nothing"))


def judge(world: World, clients: Clients, report: Report, *, settle_s: float = SETTLE_S) -> History:
    """Let the world come to rest, and hold what happened against the promise."""
    began = time.monotonic()
    late = settle(world, clients, settle_s)
    report.settled_s = time.monotonic() - began
    history = collect(world, clients, settled=late is None)
    if late is not None:  # first: it says why all that follows did not end
        report.violations.append(Violation("does not settle", "-", late))
    report.violations += checker.violations(history)
    report.tasks = len(history.tasks)
    report.acknowledged = sum(each.acknowledged for each in history.submitted)
    report.executions = len(history.executions)
    report.again = report.executions - len({each.task for each in history.executions})
    report.reused = sum(each.call > 1 for each in history.executions)
    last = {row.id: row.attempts for row in history.tasks}
    report.causes.update(
        str(each.reason).split(";")[0].split(" ")[0] for each in history.attempts if each.attempt != last.get(each.task)
    )
    if report.violations:
        world.keep, report.kept = True, str(world.root)
    return history


def _inject(world: World, schedule: Sequence[Planned], report: Report, clients: Clients) -> None:
    over = threading.Event()
    lock = threading.Lock()

    def strike(planned: Planned) -> None:
        """What it was to hurt may just be starting: then look for it for a while."""
        rng = random.Random(planned.seed)
        for _ in range(_TRIES):
            effect = planned.fault(world, rng, over)
            if effect:
                break
            over.wait(0.2)
        with lock:
            report.kills += effect.kills > 0
            report.others += effect.other > 0
            (report.effects if effect else report.idle)[planned.fault.__name__] += 1

    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fault") as pool:
        pending = []
        for planned in schedule:
            over.wait(planned.after_s)
            pending.append(pool.submit(strike, planned))
        clients.hurry()
        for each in pending:
            each.result()


def defects(messages: str) -> Iterator[str]:
    """What a service said that it must never say, with what followed: a traceback tells its cause in its last line."""
    lines = messages.splitlines()
    for number, line in enumerate(lines):
        if any(sign in line for sign in _DEFECTS):
            yield "\n".join(lines[number : number + _CONTEXT])


def settle(world: World, clients: Clients, timeout_s: float) -> str | None:
    """Peace: until everything acknowledged has ended and is delivered.  What is missing, if that does not come."""
    try:
        for proxy in world.proxies:
            proxy.switch("open")
        clients.hurry()
        if not clients.join(timeout_s):
            return f"clients got no answer within {timeout_s:g} s\n{world.last_words()}"
        wait_for(lambda: not open_ends(world), "everything to end", timeout_s, lambda: _hanging(world))
        still = world.drain()
    except TimeoutError as error:
        return str(error)
    return "; ".join(still) or None


def _hanging(world: World) -> str:
    return f"{open_ends(world)}\n{world.last_words()}"


def open_ends(world: World) -> str:
    """What has still to happen, in words; empty: nothing.  A server that was just killed may still recover."""
    files = [name for name in os.listdir(world.queue) if name.endswith(".task")]
    if files:
        return f"{len(files)} files wait, {files[0]} is one"
    try:
        with world.cluster.connect() as conn:
            rows = conn.execute(
                "SELECT id || ' is ' || state FROM pysched.tasks WHERE finished_at IS NULL"
                " UNION ALL SELECT task_id || ' owes its .done' FROM pysched.owed LIMIT 20"
            ).fetchall()
    except psycopg.OperationalError as error:
        return f"the store does not answer: {error}"
    return ", ".join(text for (text,) in rows)


def collect(world: World, clients: Clients, *, settled: bool) -> History:
    """The witnesses' words.  Of a world that did not settle, the processes that still run say nothing."""
    history = History(submitted=list(clients.submitted))
    with world.ledger.open() if world.ledger.exists() else open(os.devnull) as file:
        history.executions = read_ledger(file)
    with world.cluster.connect() as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        history.tasks = [
            TaskRow(**row)
            for row in conn.cursor(row_factory=dict_row).execute(
                "SELECT id, name, state, reason, attempts, failures, exit_code, result::json AS result"
                " FROM pysched.tasks"
            )
        ]
        history.attempts = [
            AttemptRow(**row)
            for row in conn.cursor(row_factory=dict_row).execute(
                "SELECT task_id AS task, attempt, state, reason, pid, exit_code, node::text AS node"
                " FROM pysched.attempts"
            )
        ]
        history.homes = dict(conn.execute("SELECT incarnation::text, home::text FROM pysched.nodes").fetchall())
        history.offer = OFFER
        history.ends = [
            End(task=task, state=state, attempts=attempts)
            for task, state, attempts in conn.execute("SELECT task, state, attempts FROM chaos.ends")
        ]
        history.undelivered = [task for (task,) in conn.execute("SELECT task_id FROM pysched.owed")]
    for node in world.nodes:
        for path in sorted(node.completed.glob("*.done")):
            content = json.loads(path.read_bytes())
            log = content["stdout"]
            output = Path(log).read_text() if log is not None and os.path.exists(log) else None
            history.done.append(DoneFile(folder=node.completed.name, task=path.stem, content=content, output=output))
    rejected = world.root / "rejected"
    history.rejected = [path.read_text().strip() for path in rejected.glob("*.reason")] if rejected.exists() else []
    for service in world.services:
        history.defects += [f"{service.name}: {told}" for told in defects(service.messages)]
    if settled:
        history.leftovers = [processes.describe(pid) for pid in world.leftovers()]
        history.leftovers += [str(path) for node in world.nodes for path in node.completed.glob(".*.done.tmp")]
    return history
