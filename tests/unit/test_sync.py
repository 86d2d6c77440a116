"""How a batch of files gets to the disk, on a disk that does as it is told: a library before libc counts and fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DISK = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

int kind, fsyncs, syncfses, fsync_us, syncfs_us, syncfs_error;
char meminfo[4096];
static long passed_us = 1000000;  // nothing else takes time

int clock_gettime(clockid_t clock, struct timespec *time) {
    if (clock != CLOCK_BOOTTIME)
        return syscall(SYS_clock_gettime, clock, time);
    long us = __atomic_load_n(&passed_us, __ATOMIC_RELAXED);
    *time = (struct timespec){us / 1000000, us % 1000000 * 1000};
    return 0;
}

int fsync(int fd) {
    __atomic_fetch_add(&fsyncs, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&passed_us, fsync_us, __ATOMIC_RELAXED);
    return 0;
}

int syncfs(int fd) {
    syncfses++;
    __atomic_fetch_add(&passed_us, syncfs_us, __ATOMIC_RELAXED);
    errno = syncfs_error;
    return syncfs_error ? -1 : 0;
}

int fstatfs64(int fd, struct statfs64 *status) { status->f_type = kind; return 0; }

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return syscall(SYS_openat, AT_FDCWD, strcmp(path, "/proc/meminfo") ? path : meminfo, flags, mode);
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));
"""

SCRIPT = """
import ctypes, json, os, sys
from pathlib import Path
from pysched._core import write_files

disk, folder, steps = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
meminfo = folder.parent / "meminfo"
(ctypes.c_char * 4096).in_dll(disk, "meminfo").value = os.fsencode(meminfo)
number = lambda name: ctypes.c_int.in_dll(disk, name)
counts = []
for step, given in enumerate(steps):
    dirty_kb = given.pop("dirty_kb", 0)
    meminfo.write_text(f"MemTotal: 1 kB\\nDirty:   {dirty_kb} kB\\nWriteback:     0 kB\\n")
    files = [(f"{step}-{n}", b"%d" % n) for n in range(given.pop("files", 100))]
    for name, value in {"kind": 0xEF53, "syncfs_error": 0, "fsync_us": 1_000, "syncfs_us": 0, **given}.items():
        number(name).value = value
    number("fsyncs").value = number("syncfses").value = 0
    write_files(folder, files)
    counts.append([number("fsyncs").value, number("syncfses").value])
    assert all((folder / name).read_bytes() == data for name, data in files)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
print(json.dumps(counts))
"""

EACH, TOGETHER = [101, 0], [2, 1]  # fsyncs and syncfses of a hundred files and their folder


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("disk")
    source, library = folder / "disk.c", folder / "disk.so"
    source.write_text(DISK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O", "-o", library, source], check=True)
    return library


def _counts(disk: Path, tmp_path: Path, *steps: dict[str, Any]) -> list[list[int]]:
    """Of each step, a batch of files: how many fsyncs and syncfses it took."""
    folder = tmp_path / "completed"
    folder.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, disk, folder, json.dumps(steps)],
        env={**os.environ, "LD_PRELOAD": str(disk)}, check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    counts: list[list[int]] = json.loads(ran.stdout)
    return counts


def test_batches_are_synced_together_once_it_is_known_what_fsyncs_cost(disk: Path, tmp_path: Path) -> None:
    assert _counts(disk, tmp_path, {}, {}, {}) == [EACH, TOGETHER, TOGETHER]


def test_few_files_are_synced_one_by_one(disk: Path, tmp_path: Path) -> None:
    assert _counts(disk, tmp_path, {}, {"files": 63}, {"files": 64}) == [EACH, [64, 0], TOGETHER]


def test_where_syncfs_promises_less_each_file_is_synced(disk: Path, tmp_path: Path) -> None:
    overlay, fuse, xfs = 0x794C7630, 0x65735546, 0x58465342
    assert _counts(disk, tmp_path, {}, {"kind": overlay}, {"kind": fuse}, {"kind": xfs}) == [EACH, EACH, EACH, TOGETHER]


def test_much_that_others_have_written_is_left_to_them(disk: Path, tmp_path: Path) -> None:
    assert _counts(disk, tmp_path, {}, {"dirty_kb": 65_537}, {"dirty_kb": 65_536}) == [EACH, EACH, TOGETHER]


def test_after_a_syncfs_that_took_longer_than_the_fsyncs_there_is_none_for_fifty_times_as_long(
    disk: Path, tmp_path: Path
) -> None:
    slow = {"syncfs_us": 150_000}  # the fsyncs take 100 ms
    counts = _counts(disk, tmp_path, {}, {"syncfs_us": 90_000}, slow, *[{}] * 80)
    assert counts[:4] == [EACH, TOGETHER, TOGETHER, EACH]
    # A rest of 7.5 s, of which each batch of a hundred files takes 0.1.
    assert counts.index(TOGETHER, 3) == pytest.approx(3 + 7_500 / 101, abs=1)


def test_after_a_syncfs_that_failed_files_are_written_anew_and_synced_each(disk: Path, tmp_path: Path) -> None:
    failing = {"syncfs_error": 5}  # EIO
    assert _counts(disk, tmp_path, {}, failing, {}) == [EACH, [101, 1], EACH]


def test_what_fsyncs_cost_is_measured_again_and_again(disk: Path, tmp_path: Path) -> None:
    counts = _counts(disk, tmp_path, *[{"files": 64}] * 67)
    assert [number for number, count in enumerate(counts) if count != TOGETHER] == [0, 65]
