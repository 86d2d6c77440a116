"""An example: search the settings of a small network for handwritten digits, 500 trainings, best one reported.

    scheduler up &
    python -m pysched.ml.sweep --count 500

Each training is a task of its own (`pysched.ml.ml_task:train`), forked from a process that has numpy loaded already, so
it costs little more than its computing.  The data come with scikit-learn, which must be installed where the node runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pysched.client import Client
from pysched.errors import PyschedError

_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
_HIDDEN = (8, 16, 32, 64, 128)
_BATCHES = (16, 32, 64, 128)


def settings(count: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Parameters of `count` trainings: every combination, then again with the next seed."""
    every = ((seed, *given) for seed in itertools.count() for given in itertools.product(_HIDDEN, _BATCHES, _RATES))
    for seed, hidden, batch, rate in itertools.islice(every, count):
        yield {
            "data": "digits",
            "duration_ms": 3_600_000,
            "epochs": epochs,
            "seed": seed,
            "hidden": hidden,
            "batch": batch,
            "learning_rate": rate,
        }


def tasks(sweep: str, parameters: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, given in enumerate(parameters):
        yield {
            "id": f"{sweep}-{number:04d}",
            "type": "ml",
            "entrypoint": "pysched.ml.ml_task:train",
            "params": given,
            "tags": ["sweep", sweep],
        }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sweep", description="Many trainings on the digits data; the best one.")
    parser.add_argument("--count", type=int, default=500, help="trainings (default: 500)")
    parser.add_argument("--epochs", type=int, default=3, help="through the data, each (default: 3)")
    parser.add_argument("--url", help="of the server; found by itself if it runs on this machine")
    options = parser.parse_args(arguments)
    sweep = f"sweep-{time.time_ns()}"
    given = list(settings(options.count, options.epochs))
    try:
        with Client(options.url) as client:
            started = time.perf_counter()
            ids = [task["id"] for task in client.submit_many(list(tasks(sweep, given)))]
            records = client.wait(ids)
            seconds = time.perf_counter() - started
    except PyschedError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return error.exit_code
    by_id = {task_id: record for task_id, record in records.items() if record["status"] == "succeeded"}
    print(f"{len(by_id)} of {len(ids)} trainings in {seconds:.1f} s, {len(ids) / seconds:.0f} a second")
    if not by_id:
        return 1
    winner = max(by_id, key=lambda task_id: _rank(by_id[task_id]["result"]))
    result, params = by_id[winner]["result"], given[ids.index(winner)]
    chosen = ", ".join(f"{name} {params[name]}" for name in ("learning_rate", "hidden", "batch", "seed"))
    print(f"best: {winner}: accuracy {result['accuracy']:.4f}, loss {result['loss_last']:.4f} with {chosen}")
    return int(len(by_id) < len(ids))


def _rank(result: Mapping[str, Any]) -> tuple[float, float]:
    """The highest accuracy; of equal ones the smallest loss."""
    return result["accuracy"], -result["loss_last"]


if __name__ == "__main__":
    sys.exit(main())
