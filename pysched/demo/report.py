"""What the demo says at its end: was everything right, and how fast was it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pysched.demo.workload import Expected

SEED_PER_MINUTE = 420  # the seed's headline, for 500 tasks and 8 workers
SEED_P95_S = 1.2

Record = Mapping[str, object]  # the fields of a .done file


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished demo."""

    expected: Sequence[Expected]
    records: Mapping[str, Record]  # from the store, by id
    done: Mapping[str, Record]  # from the completed folder, by id
    submit_s: Sequence[float]  # of each POST /submit
    workers: int

    def mistakes(self) -> list[str]:
        """Everything that is not exactly as it had to be; empty if all is well."""
        wanted = {str(item.task["id"]): item for item in self.expected}
        found = [f"{name}: unknown task in the database" for name in self.records.keys() - wanted.keys()]
        found += [f"{name}: .done of an unknown task" for name in self.done.keys() - wanted.keys()]
        for name, item in wanted.items():
            record, done = self.records.get(name), self.done.get(name)
            if record is None:
                found.append(f"{name}: missing in the database")
            elif done is None:
                found.append(f"{name}: no .done file")
            else:
                found += [f"{name}: {difference}" for difference in item.differences(done)]
                found += [
                    f"{name}: {field} is {record.get(field)!r} in the database, {done.get(field)!r} in its .done file"
                    for field in ("status", "reason", "attempts", "node", "result")
                    if record.get(field) != done.get(field)
                ]
        return sorted(found)


def read_completed(folder: Path) -> dict[str, Record]:
    """The `.done` files of a folder, by id."""
    records = (json.loads(path.read_bytes()) for path in folder.glob("*.done"))
    return {record["id"]: record for record in records}


def show(run: Run, console: Console) -> None:
    """The tables."""
    console.print(_outcomes(run))
    console.print(_figures(run))


def _outcomes(run: Run) -> Table:
    counts = Counter((record["status"], record["priority"]) for record in run.records.values())
    table = Table(title="Tasks by status and priority", title_justify="left")
    table.add_column("status")
    priorities = ("HIGH", "MED", "LOW")
    for name in (*priorities, "all"):
        table.add_column(name, justify="right")
    for status in sorted({str(status) for status, _ in counts}, key=["succeeded", "failed", "cancelled"].index):
        row = [counts[status, priority] for priority in priorities]
        table.add_row(status, *map(str, row), str(sum(row)))
    row = [sum(count for (_, of), count in counts.items() if of == priority) for priority in priorities]
    table.add_row("all", *map(str, row), str(sum(row)), style="bold")
    return table


def _figures(run: Run) -> Table:
    submitted = [_time(record["submitted_at"]) for record in run.records.values()]
    finished = [_time(record["finished_at"]) for record in run.records.values()]
    total_s = [(end - begin).total_seconds() for begin, end in zip(submitted, finished, strict=True)]
    elapsed_s = (max(finished) - min(submitted)).total_seconds()
    waits = [float(str(record["wait_ms"])) / 1000 for record in run.records.values() if record["wait_ms"] is not None]
    table = Table(title=f"{len(run.records)} tasks, {run.workers} workers, {elapsed_s:.1f} s", title_justify="left")
    table.add_column("")
    for name in ("p50", "p95", "p99", "the seed"):
        table.add_column(name, justify="right")
    table.add_row("submit (POST /submit → answer)", *_quantiles(run.submit_s), "")
    table.add_row("wait (accepted → started)", *_quantiles(waits), "")
    table.add_row("total (accepted → finished)", *_quantiles(total_s), f"p95 {SEED_P95_S} s")
    table.add_row(
        "throughput", f"{len(finished) / elapsed_s * 60:,.0f}/min", "", "", f"{SEED_PER_MINUTE}/min", style="bold"
    )
    return table


def _quantiles(values: Sequence[float]) -> list[str]:
    """p50, p95 and p99 by nearest rank, in a readable unit."""
    ordered = sorted(values)
    picked = [ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.95, 0.99)]
    return [f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s" for value in picked]


def _time(text: object) -> datetime:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00"))
