"""The core doing what `baseline/spawn_loop.c` does: one program COUNT times, WORKERS at once, in memory.

    python benchmarks/core_loop.py [--lanes N] [--resident-mib N] [--table] [--leaves] WORKERS COUNT FOLDER PROGRAM

Launches are made before the clock starts, as argv and environment of the loop in C are.  Prints the seconds, and the
processor's seconds of all processes; exit 0 only if every child's was.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from pysched import delegation
from pysched._core import EXITED, STARTED, AttemptTable, Core, Launch


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--resident-mib", type=int, default=0, help="memory of this process that is touched before")
    parser.add_argument("--table", action="store_true", help="keep the table of attempts, as a node does")
    parser.add_argument("workers", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("folder")
    parser.add_argument("program")
    parser.add_argument("--leaves", action="store_true", help="each child in a control group, as a node does")
    options = parser.parse_args()
    with delegation.folder(f"bench-{os.getpid()}") if options.leaves else nullcontext() as cgroup:
        return _run(options, cgroup)


def _run(options: argparse.Namespace, cgroup: Path | None) -> int:
    resident = bytearray(options.resident_mib << 20)
    resident[::4096] = b"\1" * len(resident[::4096])
    program = os.fsencode(options.program)
    launches = [
        Launch(
            handle=number,
            priority=1,
            rank=0,
            sequence=number,
            argv=[program],
            candidates=[program],
            env=[b"PATH=/usr/local/bin:/usr/bin:/bin"],
            cwd=b"/",
            stdout=os.fsencode(f"{options.folder}/{number}.out"),
            stderr=os.fsencode(f"{options.folder}/{number}.err"),
            token=number + 1,
        )
        for number in range(options.count)
    ]
    table = _table(options.folder, 2 * options.workers + 8192) if options.table else None
    core = Core(lanes=options.lanes, workers=options.workers, table=table, cgroup=cgroup)
    cpu_s, start = _cpu_seconds(), time.perf_counter()
    core.submit(launches)
    ended, failed = 0, 0
    while ended < len(launches):
        events = core.poll(None)
        for event in events:
            if event.kind != STARTED:
                ended += 1
                failed += event.kind != EXITED or event.status != 0
        if table is not None:
            table.release([event.handle + 1 for event in events if event.kind != STARTED])
    print(f"{time.perf_counter() - start:.6f} {_cpu_seconds() - cpu_s:.6f}")
    core.close()
    return int(failed != 0)


def _table(folder: str, rows: int) -> AttemptTable:
    path, guard = f"{folder}/attempts.table", os.urandom(16)
    AttemptTable.begin(path, guard)
    return AttemptTable(path, guard, rows=rows)


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    sys.exit(main())
