"""When a node may claim, must end all it holds, and may take others for dead."""

from __future__ import annotations

import pytest

from pysched.engine.lease import KILL_S, LEASE_S, RENEW_S, RETRY_S, Lease


def kept(*, from_s: float = 0.0, until_s: float) -> Lease:
    """One that was renewed regularly, each time at once."""
    lease = Lease(until=from_s + LEASE_S)
    now = from_s
    while now <= until_s:
        lease.renewed(sent=now, now=now, others=True)
        now += RENEW_S
    return lease


def test_it_lasts_from_when_the_renewal_was_sent() -> None:
    lease = Lease(until=LEASE_S)
    lease.renewed(sent=2.0, now=5.0, others=False)
    assert lease.sure
    assert not lease.must_end(2.0 + LEASE_S - KILL_S - 0.01)
    assert lease.must_end(2.0 + LEASE_S - KILL_S)


def test_an_answer_that_overtakes_another_never_shortens_it() -> None:
    lease = Lease(until=LEASE_S)
    lease.renewed(sent=8.0, now=8.0, others=False)
    lease.renewed(sent=3.0, now=8.1, others=False)
    assert lease.until == 8.0 + LEASE_S


def test_a_failure_stops_claims_and_nothing_else_until_the_time_has_come() -> None:
    lease = Lease(until=LEASE_S)
    lease.failed(sent=RENEW_S, down=False)
    assert not lease.sure
    assert not lease.must_end(LEASE_S - KILL_S - 0.01)
    assert lease.must_end(LEASE_S - KILL_S)
    lease.renewed(sent=5.0, now=5.0, others=False)
    assert lease.sure


def test_a_server_that_is_down_takes_nothing_from_anybody() -> None:
    lease = Lease(until=LEASE_S)
    for second in range(3600):
        lease.failed(sent=float(second), down=True)
        assert not lease.must_end(second + RENEW_S)
    assert lease.must_end(3599 + LEASE_S)


def test_once_fenced_only_lifting_helps() -> None:
    lease = Lease(until=LEASE_S)
    lease.fence()
    lease.failed(sent=3.0, down=True)
    assert lease.until == LEASE_S
    lease.renewed(sent=4.0, now=4.0, others=False)
    assert not lease.sure
    assert not lease.must_end(1e6)  # all is being ended already
    lease.lift()
    assert lease.sure


def test_who_renewed_for_a_whole_lease_may_judge() -> None:
    assert not kept(until_s=LEASE_S - RENEW_S).may_judge(LEASE_S - 0.1)
    assert kept(until_s=LEASE_S).may_judge(LEASE_S)


@pytest.mark.parametrize("down", [True, False])
def test_a_failure_or_a_gap_begins_the_watch_anew(down: bool) -> None:
    lease = kept(until_s=60.0)
    lease.failed(sent=62.0, down=down)
    lease.renewed(sent=62.5, now=62.5, others=True)
    assert not lease.may_judge(62.5)
    stopped = kept(until_s=60.0)
    stopped.renewed(sent=90.0, now=90.0, others=True)
    assert not stopped.may_judge(90.0)
    assert kept(from_s=90.0, until_s=100.0).may_judge(100.0)


def test_nobody_judges_while_in_doubt() -> None:
    lease = kept(until_s=60.0)
    lease.failed(sent=62.0, down=False)
    assert not lease.may_judge(62.0)


def test_after_an_outage_nobody_judges_before_the_others_had_a_lease_to_come_back() -> None:
    lease = kept(until_s=60.0)
    now, back = 62.5, 100.0
    while now < back:
        lease.failed(sent=now, down=True)
        now += RETRY_S
    while not lease.may_judge(now):
        lease.renewed(sent=now, now=now, others=True)
        now += RENEW_S
    assert now >= back + LEASE_S
