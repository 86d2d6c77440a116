"""What every competitor's script does: take the job, do it, check it, print how long it took."""

from __future__ import annotations

import argparse
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "/bin/true"


@dataclass(frozen=True)
class Work:
    """Run `PROGRAM` `count` times, `workers` at once, output into files in `folder` where the tool can do that."""

    count: int
    workers: int
    folder: Path


def lap(run: Callable[[Work], float]) -> None:
    """Do the work of the command line; `run` returns the seconds it took, and raises if a child's exit was not 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workers", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    seconds = run(Work(options.count, options.workers, options.folder))
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{seconds:.6f} {sum(usage.ru_utime + usage.ru_stime for usage in usages):.6f}")


def timed(command: Sequence[str], text: str | None = None) -> float:
    """Run a tool to its end, which must be exit 0; seconds."""
    start = time.perf_counter()
    subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
