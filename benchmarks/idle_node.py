"""What does a node cost that has nothing to do?  Processor time of `scheduler run` over a while, thread by thread.

    python benchmarks/idle_node.py [--seconds 10] [--limit-pct 0.2]

The embedded database runs beside it and is shown, but not counted: it is another program's business how it idles.
Exit 0 only if the node stays below the limit.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.server import running


def thread_seconds(pid: int) -> dict[str, float]:
    """Processor seconds so far, by the name of the thread."""
    seconds: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = f"{(task / 'comm').read_text().strip()} {task.name}"
        seconds[name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--limit-pct", type=float, default=0.2)
    options = parser.parse_args()
    with running("run", "--workers", "8") as node:
        time.sleep(3.0)  # what starting leaves behind: caches, the first polls
        before, start = thread_seconds(node.node_pid), time.monotonic()
        time.sleep(options.seconds)
        after, elapsed = thread_seconds(node.node_pid), time.monotonic() - start
    used = {name: (seconds - before.get(name, 0.0)) / elapsed * 100 for name, seconds in after.items()}
    for name, share in sorted(used.items(), key=lambda item: -item[1]):
        print(f"{name:<28}{share:>8.3f} % of a core")
    total = sum(used.values())
    print(f"{'the node':<28}{total:>8.3f} % of a core, to be below {options.limit_pct} %")
    return int(total >= options.limit_pct)


if __name__ == "__main__":
    sys.exit(main())
