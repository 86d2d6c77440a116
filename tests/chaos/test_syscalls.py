"""A short walk over the system calls of a node; `python -m tests.chaos.syscalls` walks them all."""

from __future__ import annotations

import pytest

from tests.chaos import syscalls
from tests.chaos.episode import Report, judge
from tests.chaos.syscalls import Injection, Walk
from tests.chaos.world import World

pytestmark = pytest.mark.timeout(400)

_STEPS = (
    Injection("fsync", "error=EIO", "1", on_done=True),
    Injection("unlink,unlinkat", "error=EIO", "1"),
    Injection("recvfrom", "error=ECONNRESET", "1"),
    Injection("unlink,unlinkat", "signal=KILL", "1"),  # accepted, the file is still there
    Injection("rename,renameat", "signal=KILL", "1"),  # ended, not delivered
    Injection("clone,clone3", "signal=KILL", "1"),  # claimed, not started
    Injection("sendto", "signal=KILL", "2"),
)


def test_a_node_may_die_or_be_refused_at_any_call() -> None:
    reason = syscalls.available()
    if reason is not None:
        pytest.skip(reason)
    report = Report(0)
    with World(nodes=1, workers=2) as world:
        walk = Walk(world)
        effective = [step for step in _STEPS if walk.step(step, rounds=20)]
        judge(world, walk.clients, report)
    assert not report.violations, "\n".join(map(str, [report, *report.violations]))
    assert list(_STEPS) == effective
    assert report.tasks == len(walk.clients.submitted) >= len(_STEPS) * syscalls.TASKS
