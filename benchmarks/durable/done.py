"""What does it take until a batch of `.done` files is on the disk, and does a writer of gigabytes hold it up?

    TMPDIR=/where/a/disk/is python -m benchmarks.durable.done [--files 1000] [--batches 20]

In turns: batches of 1,000 files, which may be synced together; the same in parts of 63, each file with an fsync of its
own.  Alone, and while another process writes over a gigabyte on the same file system again and again.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count as counter
from pathlib import Path

from pysched._core import write_files

_DATA = b"x" * 560  # a `.done` file of a process without output
_FEW = 63  # csrc/sync.pyx: FEWEST_TOGETHER
_WRITER = """
import os, sys
file, data = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600), os.urandom(2**20)
while True:
    for place in range(1024):
        os.pwrite(file, data, place * 2**20)
"""
_numbers = counter()


def batch(folder: Path, files: int, part: int) -> tuple[float, float]:
    """Milliseconds by the clock, µs of processor time a file."""
    names = [f"{next(_numbers)}.done" for _ in range(files)]
    cpu_s, began_s = time.process_time(), time.perf_counter()
    for first in range(0, files, part):
        write_files(folder, [(name, _DATA) for name in names[first : first + part]])
    return (time.perf_counter() - began_s) * 1e3, (time.process_time() - cpu_s) / files * 1e6


def measure(folder: Path, files: int, batches: int) -> None:
    laps: dict[str, list[tuple[float, float]]] = {"together": [], "one by one": []}
    batch(folder, files, files)  # what fsyncs cost is measured first
    for _ in range(batches):
        laps["together"].append(batch(folder, files, files))
        laps["one by one"].append(batch(folder, files, _FEW))
    for name, those in laps.items():
        print(f"  {name:<11}{_of([ms for ms, _ in those])} ms, {_of([us for _, us in those])} µs of CPU a file")


def _of(values: Sequence[float]) -> str:
    return f"{statistics.median(values):>6.0f} ({min(values):.0f} … {max(values):.0f})"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=1_000)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pysched-bench-") as place:
        folder = Path(place)
        print(f"{options.files} files, alone")
        measure(folder, options.files, options.batches)
        print("beside a writer of gigabytes")
        with subprocess.Popen([sys.executable, "-c", _WRITER, folder / "large"]) as writer:
            try:
                measure(folder, options.files, options.batches)
            finally:
                writer.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
