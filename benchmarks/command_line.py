"""How long does a client command take as a whole process, imports and the server's answer included?

    python -m benchmarks.command_line [--runs 15]

Runs each command against `scheduler up` on a throw-away home with some hundred tasks in it, in turns with a Python that
does nothing, and with one that imports httpx, which the blocking client therefore does without.  Compiled modules are
kept, as in an ordinary installation.  `whole` is the wall clock; `processor` is what the process itself consumed, the
figure that a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import server

_TASKS = 300
_BUDGET_MS = 150
_PYTHON = {"python -c pass": "pass", "python -c 'import httpx2'": "import httpx2"}
_COMMANDS = (
    "submit -- true", "submit --array 1-100 --delay 1h -- true", "ls", "ls -o json -n 200",
    "ls status=failed since=1d", "show %1", "show bench", "logs bench", "wait bench", "explain bench", "cancel bench",
    "stats", "nodes", "export name=bench", "completion bash", "--help", "ls --nonsense",
)  # fmt: skip

Times = tuple[float, float]  # whole, processor; ms


def main() -> int:
    parser = argparse.ArgumentParser(description="Time each client command as a process.")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    commands = {name: [sys.executable, "-c", code] for name, code in _PYTHON.items()}
    program = shutil.which("scheduler", path=os.path.dirname(sys.executable))
    assert program is not None, "install pysched into this Python first"
    commands |= {f"scheduler {words}": [program, *words.split()] for words in _COMMANDS}
    with tempfile.TemporaryDirectory() as folder, server.running("up", "--port", "0") as running:
        client = running.client
        assert client is not None
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYSCHED_", "PYTHON"))}
        environ |= {
            "PYSCHED_HOME": str(running.home),
            "XDG_CACHE_HOME": folder,
            "PYTHONPYCACHEPREFIX": str(Path(folder, "modules")),
        }
        client.submit_many({"command": "true", "name": f"task {number}"} for number in range(_TASKS))
        client.submit({"id": "bench", "name": "bench", "command": "echo out"})
        client.wait(["bench"])
        times: dict[str, list[Times]] = {name: [] for name in commands}
        for lap in range(options.runs + 1):
            for name, command in commands.items():
                taken = _run(command, environ)
                if lap:  # the first one compiles
                    times[name].append(taken)
    print(_table(times))
    slow = [name for name in list(times)[len(_PYTHON) :] if _median(times[name], 1) > _BUDGET_MS]
    print(
        f"\nover {_BUDGET_MS} ms of processor time: {', '.join(slow) or 'none'}; {os.getloadavg()[0]:.0f} processes ran"
    )
    return 1 if slow else 0


def _run(command: Sequence[str], environ: Mapping[str, str]) -> Times:
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return (time.perf_counter() - start) * 1e3, (used.ru_utime + used.ru_stime) * 1e3


def _median(times: Sequence[Times], which: int) -> float:
    return statistics.median(each[which] for each in times)


def _table(times: Mapping[str, Sequence[Times]]) -> str:
    bare = _median(times["python -c pass"], 1)
    lines = [
        "| command | processor, of a bare Python | processor ms | whole ms, least and median |",
        "|---|---|---|---|",
    ]
    for name, taken in times.items():
        processor = _median(taken, 1)
        whole = f"{min(each[0] for each in taken):.0f}, {_median(taken, 0):.0f}"
        lines.append(f"| `{name}` | {processor / bare:.1f}× | {processor:.0f} | {whole} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
