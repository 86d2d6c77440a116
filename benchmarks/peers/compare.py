"""All competitors and the core in turns: one table, also written to benchmarks/RESULTS.md.

    python -m benchmarks.peers.compare PEERS_PYTHON [--count 1000] [--rounds 5] [--write]

PEERS_PYTHON is the interpreter of the environment in which the competitors' packages are installed (`make bench-peers`
makes it).  A tool that is not installed is named as missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.baseline import Baseline, build
from benchmarks.race import Lap, Race, program

HERE = Path(__file__).parent
CORE = "pysched core"
LOOP = {threads: f"C posix_spawn, {threads} thread" for threads in (1, 2)}
WORKERS = 8


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("python", help="interpreter with the competitors' packages")
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    versions = _versions(options.python)
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(build(Path(folder)), options.python, versions, options.count)
        before = os.getloadavg()[0]
        race = Race(contenders, rounds=options.rounds)
    text = _table(race, versions, options.count)
    print(text)
    if options.write:
        (HERE.parent / "RESULTS.md").write_text(_page(text, options, before))
    return 0


def _contenders(baseline: Baseline, python: str, versions: dict[str, str], count: int) -> dict[str, Callable[[], Lap]]:
    work = (WORKERS, count, "{folder}")
    found = {CORE: program(sys.executable, str(HERE.parent / "core_loop.py"), *work, "/bin/true")}
    for threads, name in LOOP.items():
        found[name] = program(baseline.spawn_loop, "spawn", threads, *work, "/bin/true")
    scripts = {
        "xargs -P": "xargs", "make -j": "make", "GNU parallel": "parallel", "HyperQueue": "hyperqueue_local",
        "ThreadPoolExecutor": "thread_pool",
    }  # fmt: skip
    for name, script in scripts.items():
        if name in versions:
            found[name] = program(python, "-m", f"benchmarks.peers.{script}", *work)
    return found


def _versions(python: str) -> dict[str, str]:
    """What is installed, with its version."""
    probe = "import importlib.metadata as m; print(m.version('hyperqueue'))"
    commands = {
        "xargs -P": ["xargs", "--version"],
        "make -j": ["make", "--version"],
        "GNU parallel": ["parallel", "--version"],
        "HyperQueue": [python, "-c", probe],
        "ThreadPoolExecutor": [python, "--version"],
    }
    versions = {}
    for name, command in commands.items():
        if shutil.which(command[0]) is not None:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                versions[name] = answer.stdout.splitlines()[0]
    for name in commands.keys() - versions.keys():
        print(f"not installed: {name}", file=sys.stderr)
    return versions


def _table(race: Race, versions: dict[str, str], count: int) -> str:
    loop = race.fastest(*LOOP.values())
    lines = ["| | jobs/s | of the core | of the C loop | version |", "|---|---|---|---|---|"]
    for name in sorted(race.laps, key=race.seconds):
        rate = count / race.seconds(name)
        lines.append(
            f"| {name} | {rate:.0f} | {race.speed(name, CORE)} | {race.speed(name, loop)} | {versions.get(name, '')} |"
        )
    return "\n".join(lines)


def _page(table: str, options: argparse.Namespace, load: float) -> str:
    now = datetime.now(timezone.utc)
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = statistics.mode(
        [line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        or [platform.machine()]
    )
    release = platform.release().partition("-")[0]
    return f"""# Results

`/bin/true`, {options.count} times, {WORKERS} at once, output into files where the tool can, every exit code checked;
medians of {options.rounds} rounds in turns, ratios with their range. Written by `make bench-peers`, {now:%Y-%m-%d}.

{os.cpu_count()} cores ({cpu}), {memory_gib:.0f} GiB, Linux {release}, Python {platform.python_version()},
load before {load:.1f}.

{table}

Xargs and make write all output into one place. HyperQueue's clock starts at submission, with server and worker
running; its client looks once a second whether all is done.
"""


if __name__ == "__main__":
    sys.exit(main())
