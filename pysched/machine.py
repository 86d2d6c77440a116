"""What this machine has for attempts: processors, memory, GPUs.

Detected is what the process may use of them: its affinity and the quota of its cgroup, the memory of the machine or of
its cgroup, the GPUs that NVML sees and CUDA_VISIBLE_DEVICES leaves.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from pysched.delegation import SELF
from pysched.resources import Demand, thousandths

GPUS_MOST = 64  # of a node; a bit each
CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")

_log = structlog.get_logger("machine")


def offer(
    cpus_given: float | None, memory_given: int | None, gpus_given: str | None, environ: Mapping[str, str]
) -> tuple[Demand, list[str]]:
    """What a node offers, and the names of its GPUs: what was given, else what is there; `ValueError`."""
    if gpus_given is None:
        names = gpus(environ)[:GPUS_MOST]
    else:
        names = [] if gpus_given == "none" else [word.strip() for word in gpus_given.split(",")]
        if len(set(names)) != len(names) or not all(0 < len(name.encode()) < 64 for name in names):
            raise ValueError(
                f"{gpus_given!r} are no names of GPUs; use them as in CUDA_VISIBLE_DEVICES, as 0,1, or none"
            )
        if len(names) > GPUS_MOST:
            raise ValueError(f"{len(names)} GPUs are too many for one node; use up to {GPUS_MOST}")
    return (
        Demand(
            thousandths(cpus() if cpus_given is None else cpus_given),
            memory() if memory_given is None else memory_given,
            1000 * len(names),
        ),
        names,
    )


def cpus() -> float:
    """Processors that this process may use at a time."""
    count = float(len(os.sched_getaffinity(0)))
    for folder in _folders("cpu"):
        quota, period = _quota(folder)
        if quota is not None and period:
            count = min(count, quota / period)
    return count


def memory() -> int:
    """Bytes that it may use, with all it starts."""
    total = next(int(line.split()[1]) * 1024 for line in _MEMINFO.read_text().splitlines() if line[:9] == "MemTotal:")
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = number(folder / name)
            if limit is not None:
                total = min(total, limit)
    return total


def gpus(environ: Mapping[str, str]) -> list[str]:
    """Names of the GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    found = _by_nvml()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not found:
        return found
    chosen = []
    for word in filter(None, map(str.strip, visible.split(","))):
        fitting = [name for number, name in enumerate(found) if word == str(number) or name.startswith(word)]
        if len(fitting) != 1:
            break  # as CUDA: what follows a name that is none is not visible
        chosen += fitting
    return chosen


def _by_nvml() -> list[str]:
    """UUIDs: unlike numbers they mean the same to NVML and to CUDA, whatever CUDA_DEVICE_ORDER says."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
        try:
            uuids = [
                nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(number))
                for number in range(nvml.nvmlDeviceGetCount())
            ]
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        _log.debug("no GPUs", reason=str(error))
        return []
    return [uuid.decode() if isinstance(uuid, bytes) else uuid for uuid in uuids]


def _folders(controller: str) -> Iterator[Path]:
    """Our cgroups and all above them, of v2 and of v1."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        folder = root / path.lstrip("/")
        while True:
            yield folder
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def unified_cgroup() -> Path | None:
    """Ours of version 2, with those of attempts below it; None: there is none."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return None
    paths = [line[3:] for line in lines if line.startswith("0::")]
    return CGROUPS / paths[0].removesuffix(f"/{SELF}").lstrip("/") if paths else None


def _quota(folder: Path) -> tuple[int | None, int | None]:
    """Microseconds of processor time in each period, and the period; None: no limit."""
    try:
        words = (folder / "cpu.max").read_text().split()
    except OSError:
        return number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    return (int(words[0]), int(words[1])) if len(words) == 2 and words[0].isdecimal() else (None, None)


def number(path: Path) -> int | None:
    """What stands in a file of the kernel's; None for no limit, or no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
