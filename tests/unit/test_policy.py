"""Pure decisions: retry, back-off, prefetch and what to claim next."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched.model import AttemptKey, Exit, Priority, Reason, State
from pysched.policy import RetryRule, backoff_s, claim_limit, is_poison, is_suspect, prefetch, verdict

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEY = AttemptKey(id="t", attempt=1, token=7)


def ended(**how: object) -> Exit:
    return Exit(pid=1, started_at=NOW, finished_at=NOW, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "failures", "next_state", "reason", "attempt_state"),
    [
        ({"exit_code": 0}, 0, State.SUCCEEDED, None, State.SUCCEEDED),
        ({"exit_code": 3}, 0, State.SCHEDULED, "exit 3", State.FAILED),
        ({"exit_code": 3}, 1, State.SCHEDULED, "exit 3", State.FAILED),
        ({"exit_code": 3}, 2, State.FAILED, "exit 3", State.FAILED),
        ({"signal": "SIGSEGV"}, 2, State.FAILED, "signal SIGSEGV", State.FAILED),
        ({"signal": "SIGTERM", "cause": Reason.TIMEOUT}, 0, State.SCHEDULED, "timeout", State.FAILED),
        ({"exit_code": 0, "cause": Reason.TIMEOUT}, 2, State.FAILED, "timeout", State.FAILED),
        (
            {"cause": "spawn: exec /x: No such file or directory"},
            2,
            State.FAILED,
            "spawn: exec /x: No such file or directory",
            State.FAILED,
        ),
        ({"cause": Reason.LOST}, 0, State.SCHEDULED, "lost", State.FAILED),
        ({"signal": "SIGTERM", "cause": Reason.USER}, 0, State.CANCELLED, "user", State.CANCELLED),
        ({"signal": "SIGKILL", "cause": Reason.SHUTDOWN}, 2, State.QUEUED, "shutdown", State.CANCELLED),
    ],
)
def test_verdict(
    how: dict[str, object], failures: int, next_state: State, reason: str | None, attempt_state: State
) -> None:
    rule = RetryRule(max_retries=2, retry_delay_s=0.5)
    outcome = verdict(KEY, ended(**how), failures=failures, rule=rule, jitter=0.5)
    assert (outcome.next_state, outcome.reason, outcome.attempt_state) == (next_state, reason, attempt_state)
    assert outcome.counts == (reason != "shutdown")


@given(st.integers(1, 101), st.floats(0, 86_400), st.floats(0, 1, exclude_max=True))
def test_backoff_doubles_under_its_cap(failures: int, delay_s: float, jitter: float) -> None:
    delay = backoff_s(failures, delay_s, jitter)
    assert 0 <= delay <= min(delay_s * 2 ** (failures - 1), max(60, delay_s))
    assert backoff_s(1, delay_s, 1.0) == delay_s
    assert backoff_s(2, 10, 1.0) == 20
    assert backoff_s(50, 10, 1.0) == 60
    assert backoff_s(50, 100, 1.0) == 100


def test_long_jobs_are_not_hoarded_and_short_ones_are_fetched_ahead() -> None:
    assert prefetch(0) == 0
    assert prefetch(8) == 0  # 8 workers, one second each
    assert 50 <= prefetch(2_000) <= 200
    assert prefetch(2_000, claim_s=0.1) == 400  # the store is slow: workers must not wait for it
    assert prefetch(100, claim_s=60.0) == 50


def test_who_is_alone_looks_further_ahead_and_hoards_no_long_jobs_either() -> None:
    assert prefetch(2_000, alone=True) > prefetch(2_000)
    assert prefetch(2, alone=True) == 0  # 8 workers, four seconds each
    assert prefetch(100, claim_s=60.0, alone=True) == 50


waiting = st.tuples(*[st.integers(0, 200)] * 3)


@given(st.integers(0, 64), st.integers(0, 200), waiting)
def test_a_claim_never_hoards_and_never_keeps_a_class_out(free: int, ahead: int, waiting: tuple[int, int, int]) -> None:
    room = free + ahead
    wanted = claim_limit(free_workers=free, ahead=ahead, waiting=waiting)
    if wanted is not None:
        lowest, limit = wanted
        assert 0 < limit <= room - sum(waiting[: lowest + 1])
    if free > 0 and ahead == 0 and waiting[0] == 0:
        assert wanted is not None  # HIGH can always come in while a worker is free


def test_low_ones_taken_earlier_do_not_keep_high_ones_in_the_store() -> None:
    assert claim_limit(free_workers=1, ahead=0, waiting=(0, 0, 1)) == (Priority.MED, 1)
    assert claim_limit(free_workers=4, ahead=0, waiting=(0, 0, 0)) == (Priority.LOW, 4)
    assert claim_limit(free_workers=0, ahead=0, waiting=(0, 0, 0)) is None
    assert claim_limit(free_workers=0, ahead=40, waiting=(0, 0, 40)) == (Priority.MED, 40)
    assert claim_limit(free_workers=0, ahead=40, waiting=(0, 0, 39)) == (Priority.MED, 40)


def test_three_crashes_are_poison() -> None:
    assert [is_poison(crashes) for crashes in (0, 1, 2, 3, 4)] == [False, False, False, True, True]


def test_what_a_node_had_for_long_did_not_take_it_down() -> None:
    assert is_suspect(since_s=100.0, crashed_s=159.0)
    assert not is_suspect(since_s=100.0, crashed_s=161.0)
