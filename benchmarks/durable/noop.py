"""What does a no-op task cost, durable, from accept to finish, on one node?  Against others on the same server.

    python -m benchmarks.durable.noop [--peers FOLDER] [--count 20000] [--rounds 5]

FOLDER holds the competitors (`make bench-durable` installs them there): `node_modules` with graphile-worker,
`bin/python` with Celery.  Jobs are submitted by one process in batches of 1,000 and, meanwhile, run by another.  A node
has no executor for no-ops inside its process: pysched's runner claims, starts nothing and finishes, through the Store,
as a node does with ends that are nothing special.  `raw SQL` is the same statements and transactions without the
Store.  Celery's Redis keeps nothing on disk, and gets a tenth of the tasks.  Processor time includes the start of each
program.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.durable.server import Server, environment, running
from benchmarks.race import Lap, Race
from pysched.store.store import Store

HERE = Path(__file__).parent
STORE, RAW, GRAPHILE, CELERY = "pysched store", "raw SQL", "graphile-worker", "Celery, Redis"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, help="folder with the competitors")
    parser.add_argument("--count", type=int, default=20_000, help="a multiple of 1,000")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with running() as server:
        print(server.durability())
        contenders = {
            STORE: lambda: _lap(server, "pysched", options.count, _own("pysched")),
            RAW: lambda: _lap(server, "raw", options.count, _own("raw")),
        }
        if options.peers is not None:
            contenders[GRAPHILE] = lambda: _lap(server, "graphile", options.count, _graphile(options.peers))
            contenders[CELERY] = lambda: _celery(options.peers, options.count)
        race = Race(contenders, rounds=options.rounds)
    print(race.table(STORE, options.count))
    return 0


Runner = Callable[[str, int], "subprocess.Popen[str]"]  # of a database and a number of jobs


def _lap(server: Server, kind: str, count: int, runner: Runner) -> Lap:
    with server.database() as url:
        if kind != "graphile":
            with Store(url) as store:
                store.migrate()
        consumer = runner(url, count)
        try:
            _await(consumer, "ready")
            producer = _start([sys.executable, "-m", "benchmarks.durable.produce", kind, url, str(count)])
            try:
                _await(producer, "ready")
                before, cpu_s = time.perf_counter(), server.cpu_s() + _children_s()
                assert producer.stdin is not None
                print(file=producer.stdin, flush=True)
                _await(consumer, "done")
                seconds = time.perf_counter() - before
            finally:
                producer.communicate()
        finally:
            consumer.communicate()
        return Lap(seconds, server.cpu_s() + _children_s() - cpu_s)


def through_the_store(server: Server, count: int) -> Lap:
    """So many of pysched's own, a multiple of 1,000."""
    return _lap(server, "pysched", count, _own("pysched"))


def _own(kind: str) -> Runner:
    return lambda url, count: _start([sys.executable, "-m", "benchmarks.durable.consume", kind, url, str(count)])


def _graphile(peers: Path) -> Runner:
    def start(url: str, count: int) -> subprocess.Popen[str]:
        command = ["node", str(HERE / "graphile.mjs"), str(count)]
        return _start(command, cwd=peers, env={**os.environ, **environment(url)})

    return start


def _celery(peers: Path, count: int) -> Lap:
    program = HERE.parent / "peers" / "celery_prefork.py"
    command = [str(peers / "bin" / "python"), str(program), "noop", str(count // 10)]
    before = _children_s()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Lap(float(out.split()[0]) * 10, (_children_s() - before) * 10)


def _start(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd, env=env)


def _await(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if line != word:
        raise RuntimeError(f"{process.args!r} said {line!r} and not {word!r}")


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
