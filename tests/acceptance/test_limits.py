"""What a job may not do: leave processes behind, fill the disk with logs; and what a full disk does."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Site, wait_until


def running(token: str) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if token.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


def test_a_timeout_leaves_nothing_of_a_tree_that_hides(site: Site) -> None:
    token = f"100.{random.randrange(10**8, 10**9)}"
    site.node()
    hides = f"trap '' TERM; (env -i setsid -f sh -c 'trap \"\" TERM; sleep {token}' <&- >&- 2>&- &); sleep {token}"
    site.drop("hides", {"command": hides, "timeout_s": 1, "grace_s": 0.1, "max_retries": 0})
    record = site.done("hides")
    assert (record["status"], record["reason"]) == ("failed", "timeout")
    assert running(token) == []


def test_the_child_of_a_text_command_has_its_grace(site: Site) -> None:
    site.node()
    saves = "trap 'sleep 0.3; echo saved; exit 0' TERM; while :; do sleep 0.01; done"
    site.drop("saves", {"command": f'sh -c "{saves}"; echo never', "timeout_s": 1, "grace_s": 60, "max_retries": 0})
    record = site.done("saves")
    assert (record["status"], record["reason"]) == ("failed", "timeout")
    assert Path(record["stdout"]).read_text() == "saved\n"


@pytest.mark.parametrize("mode", ["truncate", "fail"])
def test_an_output_bomb_is_capped(site: Site, mode: str) -> None:
    site.node("--log-limit", "10KiB", "--on-log-limit", mode)
    site.drop("bomb", {"command": "seq 1000000; echo said >&2", "max_retries": 0})
    record = site.done("bomb")
    expected = {"truncate": ("succeeded", None), "fail": ("failed", "log_limit")}
    assert (record["status"], record["reason"]) == expected[mode]
    log = Path(record["stdout"]).read_bytes()
    assert log[:10] == b"1\n2\n3\n4\n5\n"
    assert log[10240:] == b"\n[pysched: over the limit of 10240 bytes, the rest is dropped]\n"
    if mode == "truncate":  # else it is ended, perhaps before it says that
        assert Path(record["stderr"]).read_text() == "said\n"


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """The completed folder on a file system of 1 MiB."""
    site.completed.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(site.completed), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    yield site.completed
    assert libc.umount2(bytes(site.completed), 2) == 0  # MNT_DETACH


def test_a_full_disk_stops_claims_keeps_results_and_is_survived(site: Site, small_disk: Path) -> None:
    node = site.node()
    fifo = site.root / "fifo"
    os.mkfifo(fifo)
    site.drop("before", {"command": f"read line < {fifo}"})
    wait_until(lambda: site.leftovers(), "the job")
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize))
    node.await_message("out of disk space")
    site.drop("during", {"command": "true"})
    wait_until(lambda: not os.listdir(site.queue), "the task to be accepted")
    fifo.write_text("\n")
    node.await_message(".done files wait")
    assert site.done_ids() == []
    (small_disk / "ballast").unlink()
    assert {record["status"] for record in site.all_done(2).values()} == {"succeeded"}
    node.await_message("claims go on")
    assert node.messages.count("out of disk space") == 1
    assert node.terminate() == 0
