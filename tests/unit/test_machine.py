"""What a machine is found to have."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest

from pysched import machine
from pysched.resources import Demand

UUIDS = ["GPU-11aa", "GPU-22bb", "GPU-33cc"]


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this process, /job below /, in v2."""
    own = tmp_path / "self"
    own.write_text("0::/job\n")
    monkeypatch.setattr(machine, "_OWN_CGROUP", own)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup" / "job").mkdir(parents=True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return tmp_path / "cgroup" / "job"


def fake_nvml(monkeypatch: pytest.MonkeyPatch, uuids: list[str], *, broken: bool = False) -> None:
    module = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def begin() -> None:
        if broken:
            raise NVMLError("Driver Not Loaded")

    for name, value in {
        "NVMLError": NVMLError,
        "nvmlInit": begin,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(uuids),
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetUUID": lambda number: uuids[number],
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)


def test_this_machine() -> None:
    assert machine.cpus() > 0
    assert machine.memory() > 2**20


def test_the_quota_of_the_cgroup_or_of_one_above_counts(cgroup: Path) -> None:
    assert machine.cpus() == 8
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert machine.cpus() == 8
    (cgroup / "cpu.max").write_text("250000 100000\n")
    assert machine.cpus() == 2.5
    (cgroup.parent / "cpu.max").write_text("150000 100000\n")
    assert machine.cpus() == 1.5


def test_the_limit_of_the_cgroup_counts(cgroup: Path) -> None:
    everything = machine.memory()
    (cgroup / "memory.max").write_text("max\n")
    assert machine.memory() == everything
    (cgroup / "memory.max").write_text("1048576\n")
    assert machine.memory() == 2**20


def test_cgroups_of_version_1(tmp_path: Path, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "self").write_text("4:memory:/a/b\n3:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n")
    (cgroup.parent / "memory" / "a" / "b").mkdir(parents=True)
    (cgroup.parent / "cpu" / "a").mkdir(parents=True)
    (cgroup.parent / "memory" / "a" / "memory.limit_in_bytes").write_text(f"{2**25}\n")
    (cgroup.parent / "cpu" / "a" / "cpu.cfs_quota_us").write_text("50000\n")
    (cgroup.parent / "cpu" / "a" / "cpu.cfs_period_us").write_text("100000\n")
    assert (machine.cpus(), machine.memory()) == (0.5, 2**25)
    (cgroup.parent / "cpu" / "a" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.cpus() == 8


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, UUIDS),
        ("2,0", ["GPU-33cc", "GPU-11aa"]),
        ("GPU-22", ["GPU-22bb"]),
        ("1,7,0", ["GPU-22bb"]),
        ("", []),
        ("GPU-", []),
    ],
)
def test_gpus_are_those_that_nvml_sees_and_the_environment_leaves(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[str]
) -> None:
    fake_nvml(monkeypatch, UUIDS)
    assert machine.gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


def test_without_a_driver_or_the_library_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, UUIDS, broken=True)
    assert machine.gpus({}) == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.gpus({}) == []


def test_what_is_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvml(monkeypatch, UUIDS)
    assert machine.offer(1.5, 2**30, "0, 1", {}) == (Demand(1500, 2**30, 2000), ["0", "1"])
    assert machine.offer(1, 2**30, None, {}) == (Demand(1000, 2**30, 3000), UUIDS)
    assert machine.offer(1, 2**30, "none", {}) == (Demand(1000, 2**30, 0), [])
    for bad in ("0,0", "0,", "x" * 64):
        with pytest.raises(ValueError, match="are no names of GPUs"):
            machine.offer(1, 1, bad, {})
    with pytest.raises(ValueError, match="65 GPUs are too many"):
        machine.offer(1, 1, ",".join(map(str, range(65))), {})
