"""What does a warm ML job cost, beside the same work done by other means?

    python -m benchmarks.warm [--count 200] [--calls 10000] [--rounds 5] [--trainings 100] [--peers PYTHON]

Jobs: durable ones, from one batch over HTTP to the last `.done`, with 8 workers, against

    bare    a process with numpy that forks, `_exit`s and waits: no function, no log, no record
    cold    `python -c "import numpy"`, one after the other

Reused: the same with `reuse: true`, against `ProcessPoolExecutor(2).submit`, which records nothing, and with `--peers`
against two workers of Celery's prefork pool, which gets a tenth of the calls; beside them no-op tasks that go through
the store and start nothing, which is what being durable costs (`python -m benchmarks.durable.noop`).  Processor time is
that of everybody: this process, which submits, its children, the server and PostgreSQL.
Sweep: trainings on the digits data, 2 workers, against `xargs -P2` over `python ml/ml_task.py`, and, with `--peers` an
interpreter that has joblib, numpy and scikit-learn, against `joblib.Parallel(2)` with loky in a process of its own.
Memory: what 8 forked processes that wait have in all (PSS, shared pages by shares), against one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import count as counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.durable import noop
from benchmarks.durable import server as durable_server
from benchmarks.race import Lap, Race
from benchmarks.race import program as lap_of
from benchmarks.server import Server, running
from pysched.ml import ml_task, sweep
from pysched.store.embedded import EmbeddedServer

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_BARE = """
import os, sys
import numpy
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""
_LOKY = """
import importlib.util, json, sys
import joblib
def train(given):
    import importlib.util
    spec = importlib.util.spec_from_file_location("ml_task", sys.argv[1] if len(sys.argv) > 1 else given["path"])
    module = sys.modules.get("ml_task")
    if module is None:
        module = sys.modules["ml_task"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.train(**given["params"])
path = sys.argv[1]
trainings = [{"path": path, "params": params} for params in json.load(sys.stdin)]
results = joblib.Parallel(2, backend="loky")(joblib.delayed(train)(given) for given in trainings)
assert len(results) == len(trainings)
"""
_SPARES = """
import os, signal, sys
import numpy
pids = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pids.append(pid)
print(*pids, flush=True)
sys.stdin.read()
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
_CELERY = str(Path(__file__).parent / "peers" / "celery_prefork.py")
_numbers = counter()


def timed(work: Callable[[], object], times: float = 1.0) -> Lap:
    """A lap of `work`, as if it had been done `times` times.  Processor time is that of children waited for."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Lap(seconds * times, max(cpu_s, 1e-9) * times)


def _scaled(lap: Lap, times: float) -> Lap:
    return Lap(lap.seconds * times, lap.cpu_s * times)


def by_all(work: Callable[[], object], others: Callable[[], float]) -> Lap:
    """A lap of `work` with the processor time of this process and of `others`."""
    cpu_s, started = time.process_time() + others(), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return Lap(seconds, time.process_time() + others() - cpu_s)


def spent_by(processes: Iterable[psutil.Process]) -> float:
    """Seconds of the processor, with those of children that they have waited for."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def program(*arguments: str, give: str | None = None) -> None:
    subprocess.run(
        arguments, input=give, text=True, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD}
    )


def durable(server: Server, tasks: Iterable[Mapping[str, Any]], others: Callable[[], float] | None = None) -> Lap:
    """Submit, and wait for the last `.done`; every task must succeed, which is looked at afterwards."""
    client, completed = server.client, server.home / "completed"
    assert client is not None
    name = f"lap{next(_numbers)}"
    batch = [{"id": f"{name}-{number}", "type": "ml", **task} for number, task in enumerate(tasks)]

    looked_s = 0.0

    def all_are_there() -> bool:
        nonlocal looked_s
        began_s = time.perf_counter()
        found = os.listdir(completed)
        looked_s = time.perf_counter() - began_s
        return len(found) == len(batch) and not any(file.startswith(".") for file in found)

    def work() -> None:
        client.submit_many(batch)
        while not all_are_there():
            time.sleep(max(0.01, 10 * looked_s))  # whoever lists the folder holds up who writes into it

    lap = timed(work) if others is None else by_all(work, others)
    aside = server.home / name
    aside.mkdir()
    for path in completed.iterdir():
        record = json.loads(path.read_bytes())
        assert record["status"] == "succeeded", record
        path.rename(aside / path.name)  # not removed: ext4 without a journal then looks long for room for the next
    return lap


def jobs(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, running("up", "--port", "0", "--workers", "8") as server:
        Path(folder, "small.py").write_text("def small(number):\n    return {'number': number, 'double': 2 * number}\n")
        Path(folder).chmod(0o755)

        def of_folder() -> Lap:
            return durable(
                server, [{"entrypoint": "small:small", "params": {"number": n}, "cwd": folder} for n in range(count)]
            )

        def preloaded() -> Lap:
            return durable(server, [{"entrypoint": "builtins:dict", "params": {"number": n}} for n in range(count)])

        def cold() -> None:
            for _ in range(few):
                program(sys.executable, "-c", "import numpy")

        of_folder()
        few = max(count // 20, 5)
        race = Race(
            {
                "warm, user's module": of_folder,
                "warm, preloaded": preloaded,
                "bare": lambda: timed(lambda: program(sys.executable, "-c", _BARE, str(count))),
                "cold": lambda: timed(cold, count / few),
            },
            rounds=rounds,
        )
    for name in ("warm, user's module", "warm, preloaded"):
        print(f"{name}: {count / race.seconds(name):.0f} jobs/s,", end=" ")
        print(f"{race.speed(name, 'bare')} a bare fork loop, {race.speed(name, 'cold')} cold starts")


def reused(count: int, rounds: int, peers: str | None) -> None:
    with (
        running("up", "--port", "0", "--workers", "8") as server,
        EmbeddedServer(server.home).running() as url,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool,
    ):
        guard = psutil.Process(server.node_pid).parent()
        assert guard is not None

        def durably() -> Lap:
            return durable(
                server,
                [{"entrypoint": "builtins:dict", "params": {"number": n}, "reuse": True} for n in range(count)],
                lambda: spent_by([guard, *guard.children(recursive=True)]) + durable_server.cpu_s(url),
            )

        def pooled() -> None:
            for future in [pool.submit(dict, number=n) for n in range(count)]:
                future.result()

        durably()
        pooled()
        contenders = {
            "reused": durably,
            "ProcessPoolExecutor": lambda: by_all(pooled, lambda: spent_by(map(psutil.Process, pool._processes))),
        }
        if peers is not None:
            celery = lap_of(peers, _CELERY, "calls", count // 10)
            contenders["Celery prefork"] = lambda: _scaled(celery(), 10.0)
        with durable_server.running() as stores:
            no_ops = -(-count // 1_000) * 1_000
            contenders["a no-op through the store"] = lambda: _scaled(
                noop.through_the_store(stores, no_ops), count / no_ops
            )
            race = Race(contenders, rounds=rounds)
    print(f"reused: {count / race.seconds('reused'):.0f} calls/s", end="")
    print("".join(f", {race.speed('reused', name)} {name}" for name in contenders if name != "reused"), end="")
    print(f"; by processor time {race.thrift('reused', 'ProcessPoolExecutor')} ProcessPoolExecutor")


def sweeps(trainings: int, rounds: int, peers: str | None) -> None:
    given = list(sweep.settings(trainings, epochs=3))
    lines = "".join(" ".join(f"--{name} {value}" for name, value in params.items()) + "\n" for params in given)
    with running("up", "--port", "0", "--workers", "2") as server:
        tasks = [{"entrypoint": "pysched.ml.ml_task:train", "params": params} for params in given]

        def warm() -> Lap:
            return durable(server, tasks)

        def again() -> Lap:
            return durable(server, [{**task, "reuse": True} for task in tasks])

        contenders = {
            "warm": warm,
            "reused": again,
            "xargs": lambda: timed(
                lambda: program("xargs", "-P2", "-L1", sys.executable, ml_task.__file__, give=lines)
            ),
        }
        if peers is not None:
            interpreter = peers
            contenders["loky"] = lambda: timed(
                lambda: program(interpreter, "-c", _LOKY, ml_task.__file__, give=json.dumps(given))
            )
        warm()
        again()
        race = Race(contenders, rounds=rounds)
    for ours in ("warm", "reused"):
        print(f"sweep, {ours}: {trainings / race.seconds(ours):.0f} trainings/s", end="")
        print("".join(f", {race.speed(ours, name)} {name}" for name in contenders if name != ours))


def memory() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SPARES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        all_kb = sum(psutil.Process(pid).memory_full_info().pss for pid in [parent.pid, *pids]) / 1024
        parent.stdin.close()
    one = subprocess.run(
        [sys.executable, "-c", "import numpy, psutil; print(psutil.Process().memory_full_info().pss)"],
        stdout=subprocess.PIPE, check=True, env={**os.environ, **_ONE_THREAD},
    )  # fmt: skip
    one_kb = int(one.stdout) / 1024
    print(f"memory: 8 forked processes and their parent {all_kb / 1024:.0f} MiB, {all_kb / one_kb:.2f}× one")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trainings", type=int, default=100)
    parser.add_argument("--peers")
    options = parser.parse_args()
    jobs(options.count, options.rounds)
    reused(options.calls, options.rounds, options.peers)
    sweeps(options.trainings, options.rounds, options.peers)
    memory()
    return 0


if __name__ == "__main__":
    sys.exit(main())
