"""What does a node cost that has nothing to do?  Processor time and wake-ups of `scheduler up` over a while.

    python -m benchmarks.idle_node [--seconds 10] [--limit-pct 0.2] [--threads]

Counted is the node with its guard.  The API and the embedded database, whose idling is partly other programs' business,
are shown.  Exit 0 only if the node stays below the limit.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.server import running

_WAKES = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Used:
    seconds: float = 0.0  # of a processor
    wakes: int = 0

    def __sub__(self, other: Used) -> Used:
        return Used(self.seconds - other.seconds, self.wakes - other.wakes)

    def __add__(self, other: Used) -> Used:
        return Used(self.seconds + other.seconds, self.wakes + other.wakes)


def used(pids: Iterable[int]) -> dict[str, Used]:
    """So far, by the name and number of the thread."""
    found: dict[str, Used] = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
            wakes = _WAKES.search((task / "status").read_text())
            found[f"{(task / 'comm').read_text().strip()} {task.name}"] = Used(seconds, int(wakes[1]) if wakes else 0)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--limit-pct", type=float, default=0.2)
    parser.add_argument("--threads", action="store_true", help="Show each thread of the node.")
    options = parser.parse_args()
    with running("up", "--workers", "8", "--port", "0") as node:
        guard = psutil.Process(node.node_pid).parent()
        assert guard is not None
        processes = {"node": [node.node_pid], "guard": [guard.pid], "API": [], "database": []}
        for child in guard.children(recursive=True):
            if child.pid != node.node_pid:
                processes["API" if "api" in child.cmdline() else "database"].append(child.pid)
        time.sleep(3.0)  # what starting leaves behind: caches, the first polls
        before, start = {name: used(pids) for name, pids in processes.items()}, time.monotonic()
        time.sleep(options.seconds)
        after, elapsed = {name: used(pids) for name, pids in processes.items()}, time.monotonic() - start
    threads = {
        name: {thread: now - before[name].get(thread, Used()) for thread, now in by_thread.items()}
        for name, by_thread in after.items()
    }
    if options.threads:
        for thread, each in sorted(threads["node"].items(), key=lambda item: -item[1].seconds):
            print(_row(thread, each, elapsed))
    totals = {name: sum(by_thread.values(), Used()) for name, by_thread in threads.items()}
    for name, each in totals.items():
        print(_row(name, each, elapsed))
    share = (totals["node"] + totals["guard"]).seconds / elapsed * 100
    print(f"node and guard: {share:.3f} % of a core, to be below {options.limit_pct} %")
    return int(share >= options.limit_pct)


def _row(name: str, each: Used, elapsed: float) -> str:
    return f"{name:<28}{each.seconds / elapsed * 100:>8.3f} % of a core{each.wakes / elapsed:>8.1f} wake-ups a second"


if __name__ == "__main__":
    sys.exit(main())
