"""Submits a mixed workload over HTTP, one request a task, and says how that went.

    python api/client.py --count 50 --ml_ratio 0.3 --url http://127.0.0.1:8321

Runs from a checkout in which pysched is installed, as a file or as `python -m pysched.api.client`.  The
token is found by `pysched.client`; exit codes are those of the `scheduler` command.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from pysched.client import Client
from pysched.errors import PyschedError
from pysched.model import Priority

CONNECTIONS = 8


class Arguments(argparse.ArgumentParser):
    """Says what is wrong in one line, and accepts `--ml-ratio` beside the seed's `--ml_ratio`."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see --help\n")

    def add(self, name: str, **options: Any) -> None:
        dashed = name.replace("_", "-")
        self.add_argument(*dict.fromkeys((f"--{name}", f"--{dashed}")), **options)


def number(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], Any]:
    """An argument type: a number in [least, most]."""

    def convert(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is out of range; use {least} to {most}")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # argparse's word for it
    return convert


def add_common(parser: Arguments, *, count: int) -> None:
    """The arguments that every program has which submits a workload."""
    parser.add("count", type=number(int, 1, 100_000), default=count, help="tasks to submit")
    parser.add("ml_ratio", type=number(float, 0, 1), default=0.3, help="share of them with type ml")
    parser.add("duration_ms", type=number(int, 0, 86_400_000), default=100, help="simulated work of each")
    parser.add("connections", type=number(int, 1, 512), default=CONNECTIONS, help="submissions at once")
    parser.add("timeout", type=number(float, 0, 1e9), default=600.0, help="seconds to wait for the end of all")
    parser.add("url", help="of the server; found by itself if missing")
    parser.add("token", help="bearer token; found by itself if missing")


def workload(count: int, ml_ratio: float, duration_ms: int, *, seed: int = 0) -> list[dict[str, object]]:
    """`count` simulated tasks, `ml_ratio` of them ml, priorities mixed evenly, in an order fixed by `seed`."""
    ml_count = round(count * ml_ratio)
    tasks: list[dict[str, object]] = [
        {
            "name": f"{'ml' if index < ml_count else 'system'}-{index}",
            "type": "ml" if index < ml_count else "system",
            "priority": Priority(index % len(Priority)).name,
            "duration_ms": duration_ms,
        }
        for index in range(count)
    ]
    random.Random(seed).shuffle(tasks)  # noqa: S311 - an order, no secret
    return tasks


def submit_each(
    client: Client, tasks: Sequence[Mapping[str, object]], connections: int
) -> tuple[list[str], list[float], float]:
    """One request a task; the ids, the latency of each in ms, and the seconds for all."""

    def timed(task: Mapping[str, object]) -> tuple[str, float]:
        start = time.perf_counter()
        accepted = client.submit(task)
        return accepted["id"], (time.perf_counter() - start) * 1e3

    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        answers = list(pool.map(timed, tasks))
    return [task_id for task_id, _ in answers], [ms for _, ms in answers], time.perf_counter() - start


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed; NaN for none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # nearest rank: the ceiling
    return ordered[max(int(rank), 1) - 1]


def run(program: Callable[[argparse.Namespace], int], parser: Arguments, arguments: Sequence[str] | None) -> int:
    """Parse, run, and turn pysched's errors into one line and an exit code."""
    try:
        return program(parser.parse_args(arguments))
    except PyschedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except TimeoutError as error:
        print(f"{parser.prog}: timed out: {error}", file=sys.stderr)
        return 124
    except KeyboardInterrupt:
        return 130


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Arguments(prog="client.py", description="Submit a mixed workload, one request a task.")
    add_common(parser, count=50)
    parser.add("wait", action="store_true", help="until all have ended; exit 1 unless all succeeded")
    return run(_submit, parser, arguments)


def _submit(options: argparse.Namespace) -> int:
    tasks = workload(options.count, options.ml_ratio, options.duration_ms)
    with Client(options.url, options.token) as client:
        ids, latencies, seconds = submit_each(client, tasks, options.connections)
        p50, p95 = percentile(latencies, 50), percentile(latencies, 95)
        rate = len(ids) / seconds
        print(f"accepted {len(ids)} tasks in {seconds:.2f} s: {rate:.0f}/s, p50 {p50:.1f} ms, p95 {p95:.1f} ms")
        if not options.wait:
            return 0
        ended = client.wait(ids, options.timeout)
    succeeded = sum(task["status"] == "succeeded" for task in ended.values())
    print(f"succeeded {succeeded} of {len(ended)}")
    return 0 if succeeded == len(ended) else 1


if __name__ == "__main__":
    sys.exit(main())
