"""The job of the chaos driver as an entrypoint: bears witness as `job.c` does, in a process that may make many calls.

The last word of its S line is the number of the call in its process.  It is copied into a folder of the world's own,
imports nothing of ours, and imports little: what is called cold starts with it.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import sys
import time

_calls = itertools.count(1)


def bear(ledger: str, locks: str, sleep_ms: int, code: int, bad_attempts: int, grab_mib: int) -> dict[str, object]:
    task, attempt, node = (os.environ[f"PYSCHED_{name}"] for name in ("TASK_ID", "ATTEMPT", "NODE"))
    book = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    lock = os.open(os.path.join(locks, task), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = 1
        except BlockingIOError:
            alone = 0
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
        who = f"{task} {attempt} {os.getpid()}"
        _append(book, f"S {who} {alone} {time.monotonic_ns()} {node} {gpus} {next(_calls)}\n")
        held = b"\1" * (grab_mib << 20)
        time.sleep(sleep_ms / 1000)
        del held
        code = code if int(attempt) <= bad_attempts else 0
        print(task, attempt, flush=True)
        _append(book, f"E {who} {code} {time.monotonic_ns()}\n")
    finally:
        os.close(lock)
        os.close(book)
    if code:
        sys.exit(code)
    return {"task": task, "attempt": int(attempt)}


def _append(book: int, line: str) -> None:
    """By one write, so that lines of jobs that run side by side never mix."""
    data = line.encode()
    if os.write(book, data) != len(data):
        raise OSError("the ledger took a part of a line")
