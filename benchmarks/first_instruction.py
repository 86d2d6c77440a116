"""How long after a submission over HTTP does the first instruction of the job run, on an idle server?

    python -m benchmarks.first_instruction [--runs 200] [--warm-up 20]

The job is a static program of C that looks at CLOCK_MONOTONIC before anything else and writes it into a pipe.  In
turns, after a pause each so that everything sleeps again: submitted to `scheduler up` over a connection that is kept,
from the moment before the request is written; and spawned bare by `os.posix_spawn`, from the moment before that call.
What counts is what the scheduler adds: quantiles of the one less the median of the other.  Exit 0 only if that is at
most 2 ms for half of them, 10 ms for 99 of 100.  The time to the answer, which is sent after the commit, is shown, and
what of it nobody who answers after a commit can save: in its own turn, after the same pause, one row of the same bytes
is inserted into a table of two columns by a prepared statement, over a connection of libpq's that is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from benchmarks import http_load, server
from pysched.store.embedded import EmbeddedServer

_TARGET_MS = (2.0, 10.0)  # p50, p99
_PAUSE_S = (0.03, 0.12)
_PATIENCE_S = 60.0
_STAMP = struct.Struct("=qq")

_PROGRAM = r"""
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long stamp[2] = {now.tv_sec, now.tv_nsec};
    int to = argc == 2 ? open(argv[1], O_WRONLY) : -1;
    return write(to, stamp, sizeof stamp) == sizeof stamp ? 0 : 1;
}
"""


class Job:
    """The program, and the pipe in which it leaves its time."""

    def __init__(self, folder: Path) -> None:
        source, self.program, self.pipe = folder / "first.c", folder / "first", folder / "pipe"
        source.write_text(_PROGRAM)
        compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")))
        subprocess.run([compiler, "-O2", "-static", "-o", self.program, source], check=True)
        os.mkfifo(self.pipe)
        self._reader = os.open(self.pipe, os.O_RDWR)  # also for writing, so that it never ends
        self.command = [str(self.program), str(self.pipe)]

    def started_at(self) -> float:
        """When the next one ran its first instruction: a moment of `time.monotonic`."""
        if not select.select([self._reader], [], [], _PATIENCE_S)[0]:
            raise RuntimeError(f"no job has started within {_PATIENCE_S:.0f} s")
        seconds, nanoseconds = _STAMP.unpack(os.read(self._reader, _STAMP.size))
        return float(seconds + nanoseconds / 1e9)


def spawned(job: Job) -> float:
    """Seconds from before a bare spawn to the first instruction."""
    begun = time.monotonic()
    pid = os.posix_spawn(job.command[0], job.command, {})
    taken = job.started_at() - begun
    os.waitpid(pid, 0)
    return taken


@contextlib.contextmanager
def submitting(running: server.Server, job: Job) -> Iterator[Callable[[], tuple[float, float]]]:
    """A call that gives the seconds from before a submission to the first instruction, and to the answer."""
    assert running.client is not None
    port = urlsplit(running.client.url).port
    assert port is not None
    body = json.dumps({"command": job.command}).encode()
    request = http_load.request("/submit", body, port=port, token=(running.home / "token").read_text().strip())
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S) as channel:

        def submit() -> tuple[float, float]:
            begun = time.monotonic()
            channel.sendall(request)
            answer = channel.recv(65536)
            answered = time.monotonic() - begun
            if not answer.startswith(b"HTTP/1.1 201 "):
                raise RuntimeError(f"the server answered {answer!r}")
            return job.started_at() - begun, answered

        yield submit


@contextlib.contextmanager
def committing(running: server.Server, job: Job) -> Iterator[Callable[[], float]]:
    """A call that gives the seconds of one durable insert into a table that has but a key."""
    spec = json.dumps({"command": job.command})
    with EmbeddedServer(running.home).running() as url, psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.first_instruction (id text PRIMARY KEY, spec text)")
        conn.prepare_threshold = 0

        def commit() -> float:
            begun = time.monotonic()
            conn.execute("INSERT INTO public.first_instruction VALUES (%s, %s)", (str(uuid.uuid4()), spec))
            return time.monotonic() - begun

        yield commit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20)
    options = parser.parse_args()
    bare: list[float] = []
    whole: list[float] = []
    answers: list[float] = []
    commits: list[float] = []
    choice = random.Random(1)
    with contextlib.ExitStack() as stack:
        job = Job(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pysched-bench-"))))
        running = stack.enter_context(server.running("up", "--port", "0", "--workers", "8"))
        submit = stack.enter_context(submitting(running, job))
        commit = stack.enter_context(committing(running, job))
        for number in range(-options.warm_up, options.runs):
            time.sleep(choice.uniform(*_PAUSE_S))
            alone = spawned(job)
            time.sleep(choice.uniform(*_PAUSE_S))
            started, answered = submit()
            time.sleep(choice.uniform(*_PAUSE_S))
            committed = commit()
            if number >= 0:
                bare.append(alone)
                whole.append(started)
                answers.append(answered)
                commits.append(committed)
    spawn = statistics.median(bare)
    over = [taken - spawn for taken in whole]
    _show("bare spawn", bare)
    _show("bare commit", commits)
    _show("submitted", whole)
    _show("  answered", answers)
    p50, p99 = _show("over a spawn", over)
    _show("  and a commit", [taken - statistics.median(commits) for taken in over])
    met = p50 <= _TARGET_MS[0] and p99 <= _TARGET_MS[1]
    print(f"at most {_TARGET_MS[0]:g} and {_TARGET_MS[1]:g} ms: {'met' if met else 'missed'}; {options.runs} runs")
    return 0 if met else 1


def _show(name: str, seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99, ms."""
    p50, p99 = statistics.median(seconds) * 1e3, statistics.quantiles(seconds, n=100)[-1] * 1e3
    print(f"{name:<14} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  least {min(seconds) * 1e3:6.2f} ms")
    return p50, p99


if __name__ == "__main__":
    sys.exit(main())
