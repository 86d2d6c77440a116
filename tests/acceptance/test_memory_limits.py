"""A node in a cgroup of its own that has the memory controller: the kernel ends commands at their limit of memory."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pysched import delegation
from pysched.store.store import Store

from .conftest import Site, wait_until
from .test_guard import kill_node

TAKES = "block = bytearray(300 << 20); block[::4096] = b'x' * len(block[::4096])"


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup that this process is in, until `leave`."""
    try:
        own = delegation.check_memory()
    except delegation.NotDelegated as error:
        pytest.skip(str(error))
    try:
        (own / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        pytest.skip(f"{own}: {error.strerror}; this wants to be in a cgroup that may hand out controllers, as the root")
    group = own / f"test-{os.getpid()}"
    group.mkdir()
    enter(group)
    try:
        yield group
    finally:
        enter(own)
        wait_until(lambda: is_removed(group), "what is in there to end")


def is_removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        for each in sorted(filter(Path.is_dir, group.rglob("*")), reverse=True):
            each.rmdir()
        group.rmdir()
    return not group.exists()


def enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def test_the_kernel_ends_what_takes_more_also_after_the_node_was_killed(group: Path, site: Site) -> None:
    node = site.start("run", "--workers", "4", "--queue", str(site.queue), "--completed", str(site.completed))
    enter(group.parent)  # it stays
    node.await_message("ready")
    assert "memory_limits=kernel" in node.messages
    assert (group / "cgroup.procs").read_text() == ""
    assert str(node.popen.pid) in (group / delegation.SELF / "cgroup.procs").read_text().split()
    os.mkfifo(site.root / "gate")
    takes = f'{sys.executable} -S -c "{TAKES}"; echo unreached'
    task = {"cwd": str(site.root), "max_retries": 0, "mem": "64MiB"}
    site.drop("hungry", {**task, "command": takes})
    site.drop("modest", {**task, "command": "echo done"})
    site.drop("later", {**task, "command": f"echo > began; read line < gate; {takes}"})
    wait_until((site.root / "began").exists, "it to run")
    assert site.done("modest")["status"] == "succeeded"
    site.done("hungry")
    kill_node(node)
    wait_until(lambda: "adopted" in node.messages, "the next incarnation")
    (site.root / "gate").write_text("go\n")
    for name in ("hungry", "later"):
        record = site.done(name)
        assert (record["status"], record["reason"], record["attempts"]) == ("failed", "memory", 1)
        assert Path(record["stdout"]).read_text() == ""
        with Store(site.database) as store:
            (attempt,) = store.get(name)["attempts"]
        assert 63 * 1024 <= attempt["max_rss_kb"] <= 64 * 1024
    assert node.terminate() == 0
    assert [path.name for path in group.iterdir() if path.is_dir()] == [delegation.SELF]
    enter(group)  # which nobody may who hands out controllers
    enter(group.parent)


def test_a_node_that_is_not_alone_in_its_cgroup_watches(group: Path, site: Site) -> None:
    node = site.node()  # we are in there, too
    assert "memory_limits=watched" in node.messages
    takes = f'{sys.executable} -S -c "import time; {TAKES}; time.sleep(600)"'
    site.drop("hungry", {"command": takes, "mem": "64MiB", "max_retries": 0})
    assert site.done("hungry")["reason"] == "memory"
