"""Bugs of other schedulers, put back: the driver must catch each, in a run that is clean otherwise."""

from __future__ import annotations

import pytest

from tests.chaos import bugs, checker, processes
from tests.chaos.episode import Report, collect, judge
from tests.chaos.workload import Clients, Job, Order, make_task
from tests.chaos.world import World, wait_for

pytestmark = pytest.mark.timeout(300)

DEADLINE_S = 100.0
STUCK_S = 12.0  # four times what it takes to recover


def slow_jobs(world: World) -> Clients:
    """Of jobs that a rescuer who judges by time alone would take for stuck."""
    tasks = [
        make_task(world, f"slow-{sleep_ms}", Job(sleep_ms), max_retries=8) for sleep_ms in range(1_500, 4_500, 250)
    ]
    clients = Clients(world, [Order("file", (task,), patient=True) for task in tasks])
    clients.start()
    return clients


def rules(world: World, clients: Clients) -> set[str]:
    """Those that are broken by now."""
    return {violation.rule for violation in checker.violations(collect(world, clients, settled=False))}


def kill_everything(world: World, *, lose_table: bool = False) -> None:
    """The only node, with all that it runs, as soon as it runs something."""
    wait_for(lambda: world.ledger.exists() and world.ledger.stat().st_size, "a job to begin", DEADLINE_S)
    top = world.nodes[0].pid
    assert top is not None
    if lose_table:  # before the kill: the world starts the next node at once
        (world.root / "node-0" / "attempts.table").unlink()
    for pid in [top, *processes.descendants(top)]:
        processes.kill(pid)


def test_without_a_bug_the_same_run_is_clean() -> None:
    report = Report(0)
    with World(nodes=1, workers=6) as world:
        clients = slow_jobs(world)
        kill_everything(world)
        judge(world, clients, report)
    assert report.violations == []
    assert report.again > 0


@pytest.mark.parametrize(
    ("bug", "alter", "rule"),
    [("river-1302", "", "ended twice"), ("solid-queue-589", bugs.SCHEMA_589, "recorded twice")],
)
def test_a_verdict_on_what_has_ended_meanwhile(bug: str, alter: str, rule: str) -> None:
    with World(nodes=1, workers=6, environ=bugs.environ(bug), alter=alter) as world:
        clients = slow_jobs(world)
        wait_for(lambda: rule in rules(world, clients), f"{rule!r} to be found", DEADLINE_S, world.last_words)


def test_procrastinate_1518_a_reused_worker_id_holds_jobs_for_ever() -> None:
    report = Report(0)
    with World(nodes=1, workers=6, environ=bugs.environ("procrastinate-1518")) as world:
        clients = slow_jobs(world)
        # With its table the next node knows what ran, whoever holds that, and the bug does no harm.
        kill_everything(world, lose_table=True)
        judge(world, clients, report, settle_s=STUCK_S)
        world.keep = False
    assert {"does not settle", "never ended"} <= {violation.rule for violation in report.violations}
