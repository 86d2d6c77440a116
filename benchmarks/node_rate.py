"""How fast is the durable path?  /bin/true from one batch over HTTP to its `.done` file, jobs a second.

    python -m benchmarks.node_rate [--count 3000] [--workers 8]

For information: it says where the whole node stands beside the core alone (`test_spawn.py`).  Exit 0 only if every
task succeeded, once.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from benchmarks.server import running


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=3_000)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    with running("up", "--port", "0", "--workers", str(options.workers)) as server:
        assert server.client is not None
        tasks = [{"id": f"true-{number}", "command": ["/bin/true"]} for number in range(options.count)]
        start = time.perf_counter()
        server.client.submit_many(tasks)
        accepted_s = time.perf_counter() - start
        completed = server.home / "completed"
        while _done(completed) < options.count:
            time.sleep(0.02)
        total_s = time.perf_counter() - start
        states = server.client.stats()["states"]
    print(f"accepted  {options.count / accepted_s:>8.0f} tasks/s in one batch")
    print(f"done      {options.count / total_s:>8.0f} tasks/s from the request to the last .done")
    return int(states != {"succeeded": options.count})


def _done(folder: os.PathLike[str]) -> int:
    return sum(name.endswith(".done") and not name.startswith(".") for name in os.listdir(folder))


if __name__ == "__main__":
    sys.exit(main())
