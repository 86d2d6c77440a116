"""A jump of the wall clock changes nothing: every deadline and every duration is by CLOCK_BOOTTIME.

The wall clock of the machine is everybody's, so a library before libc makes this clock jump, in a process of its own.
The kernel's part needs no test: the lanes sleep on timerfds of CLOCK_BOOTTIME, which setting the time does not touch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

JUMPING = """
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int64_t jump_s;

int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME)
        time->tv_sec += __atomic_load_n(&jump_s, __ATOMIC_RELAXED);
    return (int)result;
}
"""

SCRIPT = """
import ctypes, os, sys, time
from pysched._core import ALARM, CAUSE_CANCEL, CAUSE_NONE, CAUSE_TIMEOUT, EXITED, STARTED, Core, Launch

jump_s = ctypes.c_int64.in_dll(ctypes.CDLL(sys.argv[1]), "jump_s")
core = Core(lanes=1, workers=4)

def submit(handle, seconds, **given):
    core.submit([Launch(handle=handle, priority=0, rank=0, sequence=handle, argv=[b"sleep", seconds],
        candidates=[b"/bin/sleep"], env=[], cwd=b"/", stdout=b"/dev/null", stderr=b"/dev/null", **given)])

def collect(wanted):
    found = {}
    while not wanted <= found.keys():
        for event in core.poll(100):
            found[event.kind, event.handle] = event
    return found

core.arm(3600, 1)
submit(1, b"1000", timeout_s=3600.0)
submit(2, b"1000", timeout_s=1.0, grace_s=3600.0)
submit(3, b"1")
collect({(STARTED, 1), (STARTED, 2), (STARTED, 3)})
before = time.time()
jump_s.value = int(sys.argv[2])
assert abs(time.time() - before) > 80_000, "the clock has not jumped"
core.arm(0.1, 2)
found = collect({(ALARM, 2), (EXITED, 2), (EXITED, 3)})
assert (ALARM, 1) not in found and (EXITED, 1) not in found, found
assert found[EXITED, 2].cause == CAUSE_TIMEOUT and found[EXITED, 3].cause == CAUSE_NONE, found
for event in found[EXITED, 2], found[EXITED, 3]:
    assert 0.9e9 < event.run_ns < 3000e9 and 0 <= event.wait_ns < 3000e9, event
    assert abs(event.ended_ns - event.started_ns) > 80_000e9, "the core does not see the jump"
core.kill(1, 0.0, CAUSE_CANCEL)
collect({(EXITED, 1)})
core.close()
"""


@pytest.mark.parametrize("jump_s", [86_400, -86_400], ids=["forward", "back"])
def test_a_jump_of_a_day(tmp_path: Path, jump_s: int) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "jump.c", tmp_path / "jump.so"
    source.write_text(JUMPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    program = [sys.executable, "-c", SCRIPT, str(library), str(jump_s)]
    done = subprocess.run(program, env={**os.environ, "LD_PRELOAD": str(library)}, stderr=subprocess.PIPE, timeout=100)
    assert (done.returncode, done.stderr) == (0, b"")
