"""Claim, start, finish: one attempt after another, each written down once, by nobody but its holder."""

from __future__ import annotations

import json
import uuid
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from pysched.errors import InputError, NotFoundError
from pysched.model import AttemptKey, Priority, Record, Started, State
from pysched.store.store import Store
from tests.integration.store_driver import Node, accept, at_once, ids, now, outcome, states, success, task


class TestClaim:
    def test_best_first(self, store: Store) -> None:
        accept(
            store,
            task("low", priority=Priority.LOW, rank=9),
            task("med"),
            task("med-late"),
            task("med-ranked", rank=1),
            task("high-behind", priority=Priority.HIGH, rank=-1),
            task("high", priority=Priority.HIGH),
        )
        order = ["high", "high-behind", "med-ranked", "med", "med-late", "low"]
        node = Node(store)
        assert ids(claim.key for claim in node.claim(limit=3)) == order[:3]
        assert ids(claim.key for claim in node.claim()) == order[3:]
        assert node.claim() == []

    def test_no_lower_than_asked(self, store: Store) -> None:
        accept(store, *(task(priority.name, priority=priority) for priority in Priority))
        assert ids(claim.key for claim in Node(store).claim(lowest=Priority.MED)) == ["HIGH", "MED"]

    def test_tells_what_the_node_needs(self, store: Store) -> None:
        accept(store, task("a", rank=4, priority=Priority.HIGH, command=["true"]))
        (claim,) = Node(store).claim()
        assert (claim.key.id, claim.key.attempt, claim.failures) == ("a", 1, 0)
        assert (claim.priority, claim.rank) == (Priority.HIGH, 4)
        assert json.loads(claim.spec)["command"] == ["true"]
        assert claim.sequence == store.get("a")["sequence"]
        assert claim.submitted_at.utcoffset() == timedelta(0)

    def test_each_task_goes_to_one_node(self, store: Store) -> None:
        accept(store, *(task(f"t{number}") for number in range(2_000)))
        nodes = [Node(store) for _ in range(6)]

        def take(node: Node) -> list[AttemptKey]:
            keys: list[AttemptKey] = []
            while claims := node.claim(limit=37):
                keys += [claim.key for claim in claims]
            return keys

        taken = [key for keys in at_once(*(partial(take, node) for node in nodes)) for key in keys]
        assert len(taken) == len(set(ids(taken))) == 2_000
        assert len({key.token for key in taken}) == 2_000

    def test_a_task_that_somebody_looks_at_holds_nobody_up(self, store: Store, store_url: str) -> None:
        accept(store, task("a"), task("b"))
        node = Node(store)
        with psycopg.connect(store_url) as other:
            other.execute("SELECT FROM pysched.tasks WHERE id = 'a' FOR SHARE")
            assert node.key().id == "b"
        assert node.key().id == "a"

    def test_a_lost_answer_is_told_again(self, store: Store) -> None:
        accept(store, task("a"), task("b"), task("c"))
        node, other = Node(store), Node(store)
        first, second = node.claim(limit=1), node.claim(limit=1)
        node.start(first[0].key)
        other.claim()
        assert store.unstarted(node.incarnation) == [second[0].key]

    def test_nothing_while_paused(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        store.set_paused(True)
        assert store.paused()
        assert node.claim() == []
        store.set_paused(False)
        assert len(node.claim()) == 1

    def test_nothing_without_a_lease(self, store: Store, store_url: str) -> None:
        accept(store, task("a"))
        node = Node(store)
        node.expire(store_url)
        assert node.claim() == []
        assert store.renew(node.incarnation, 60, running=0) is not None
        assert len(node.claim()) == 1

    def test_nothing_for_a_node_that_drains_has_ended_or_is_unknown(self, store: Store) -> None:
        accept(store, task("a"))
        draining, ended = Node(store), Node(store)
        store.drain(draining.incarnation)
        store.end_node(ended.incarnation)
        assert draining.claim() == ended.claim() == []
        assert store.claim(uuid.uuid4(), lowest=Priority.LOW, limit=9) == []
        with pytest.raises(NotFoundError):
            store.drain(uuid.uuid4())


class TestStart:
    def test_the_task_runs(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        assert node.start(node.key()) == []
        row = store.get("a")
        assert row["status"] == "running"
        (attempt,) = row["attempts"]
        assert (attempt["attempt"], attempt["status"], attempt["pid"]) == (1, "running", 7)
        assert attempt["node"] == row["node"] == str(node.incarnation)

    def test_twice_is_once(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        key = node.key()
        assert node.start(key) == node.start(key) == []

    def test_a_start_of_others_is_disowned(self, store: Store) -> None:
        accept(store, task("a"), task("b"))
        node = Node(store)
        mine, ended = [claim.key for claim in node.claim()]
        node.finish(success(ended))
        stale = AttemptKey(id=mine.id, attempt=mine.attempt, token=mine.token + 1_000)
        unknown = AttemptKey(id="nobody", attempt=1, token=1)
        assert node.start(stale, mine, ended, unknown) == [stale, ended, unknown]
        assert store.start([]) == []


class TestFinish:
    def test_success(self, store: Store) -> None:
        accept(store, task("a", name="A", priority=Priority.LOW))
        node = Node(store)
        key = node.key()
        begun, ended = now(), now() + timedelta(milliseconds=1234)
        node.store.start([Started(key=key, pid=5, started_at=begun)])
        end: dict[str, Any] = {
            "pid": 5,
            "started_at": begun,
            "finished_at": ended,
            "exit_code": 0,
            "cpu_ms": 12,
            "max_rss_kb": 2**40,
        }
        records, disowned = node.finish(
            outcome(key, **end, stdout="/l/out", stderr="/l/err", result='{"loss": 0.5, "text": "é"}')
        )
        assert disowned == []
        (record,) = records
        assert record == Record(
            id="a",
            name="A",
            type="system",
            priority="LOW",
            status="succeeded",
            reason=None,
            exit_code=0,
            signal=None,
            attempts=1,
            node=str(node.incarnation),
            submitted_at=record.submitted_at,
            started_at=begun,
            finished_at=ended,
            wait_ms=max(0, round((begun - record.submitted_at).total_seconds() * 1000)),
            run_ms=1234,
            result={"loss": 0.5, "text": "é"},
            stdout="/l/out",
            stderr="/l/err",
        )
        assert store.record("a") == record
        (attempt,) = store.get("a")["attempts"]
        assert (attempt["status"], attempt["cpu_ms"], attempt["max_rss_kb"]) == ("succeeded", 12, 2**40)

    def test_a_start_need_not_be_recorded(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        (record,), _ = node.finish(success(node.key()))
        assert record.started_at is not None
        assert record.run_ms == 30

    def test_a_retry_waits_and_counts(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        failed = outcome(
            node.key(), state=State.FAILED, next_state=State.SCHEDULED, reason="exit 3", delay_s=500, exit_code=3
        )
        assert node.finish(failed) == ([], [])
        row = store.get("a")
        assert (row["status"], row["failures"], row["reason"], row["exit_code"]) == ("scheduled", 1, None, 3)
        assert row["attempts"][0]["reason"] == "exit 3"
        assert store.promote() == pytest.approx(500, abs=30)
        assert store.stats()["retried"] == 1

    def test_a_retry_at_once(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        first = node.key()
        node.finish(outcome(first, state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1", exit_code=1))
        (claim,) = node.claim()
        assert (claim.key.attempt, claim.failures) == (2, 1)
        assert claim.key.token != first.token
        (record,), _ = node.finish(success(claim.key))
        assert (record.attempts, record.exit_code, record.reason) == (2, 0, None)
        assert [attempt["attempt"] for attempt in store.get("a")["attempts"]] == [1, 2]

    def test_handed_back_it_costs_nothing(self, store: Store) -> None:
        accept(store, task("a"))
        node, other = Node(store), Node(store)
        back: dict[str, Any] = {
            "state": State.CANCELLED,
            "next_state": State.QUEUED,
            "reason": "shutdown",
            "counts": False,
        }
        assert node.finish(outcome(node.key(), **back)) == ([], [])
        (claim,) = other.claim()
        assert (claim.key.attempt, claim.failures) == (2, 0)
        assert store.stats()["retried"] == 0

    def test_void_it_leaves_no_trace(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        first = node.key()
        void: dict[str, Any] = {
            "state": State.CANCELLED,
            "next_state": State.QUEUED,
            "reason": "shutdown",
            "counts": False,
            "void": True,
        }
        node.finish(outcome(first, **void, pid=None, started_at=None))
        assert store.get("a")["attempts"] == []
        assert store.get("a")["node"] is None
        (claim,) = node.claim()
        assert claim.key.attempt == 1
        assert claim.key.token != first.token
        assert node.start(first) == [first]

    def test_a_void_end_keeps_what_the_last_attempt_left(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        again: dict[str, Any] = {"state": State.FAILED, "next_state": State.SCHEDULED, "reason": "exit 9"}
        node.finish(outcome(node.key(), **again, exit_code=9, stdout="/1"))
        end = outcome(node.key(), state=State.CANCELLED, reason="user", void=True, pid=None, started_at=None)
        (record,), _ = node.finish(end)
        assert (record.attempts, record.exit_code, record.stdout, record.reason) == (1, 9, "/1", "user")
        assert record.node == str(node.incarnation)

    def test_never_started_it_has_no_run_time(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        end = outcome(node.key(), state=State.FAILED, reason="spawn: no such file", pid=None, started_at=None)
        (record,), _ = node.finish(end)
        assert (record.started_at, record.wait_ms, record.run_ms, record.attempts) == (None, None, None, 1)

    def test_clocks_that_differ_give_no_negative_times(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        past = now() - timedelta(days=1)
        (record,), _ = node.finish(success(node.key(), started_at=past, finished_at=past - timedelta(seconds=1)))
        assert (record.wait_ms, record.run_ms) == (0, 0)

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ('"\\u0000"', "\0"),
            ("[1e400]", None),
            ("[NaN]", None),
            ("{", None),
            ("[" * 20_000 + "]" * 20_000, None),
            ("9" * 5_000, None),
            ('"' + "x" * 70_000 + '"', None),
            ('"\\ud800"', "\ud800"),
            ("null", None),
            ("0", 0),
        ],
        ids=["nul", "infinite", "nan", "broken", "deep", "huge number", "long", "surrogate", "null", "zero"],
    )
    def test_no_result_can_poison_a_batch(self, store: Store, given: str, kept: object) -> None:
        accept(store, task("a"), task("b"))
        node = Node(store)
        odd, fine = [claim.key for claim in node.claim()]
        records, disowned = node.finish(success(odd, result=given), success(fine, result='"fine"'))
        assert disowned == []
        assert {record.id: record.result for record in records} == {"a": kept, "b": "fine"}

    def test_no_text_can_poison_a_batch(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        end = outcome(node.key(), state=State.FAILED, reason="spawn: a\0b\udcff" + "x" * 9_999, stdout="/\udcff")
        (record,), _ = node.finish(end)
        assert record.reason is not None
        assert record.reason.startswith("spawn: a\N{REPLACEMENT CHARACTER}b?xxx")
        assert len(record.reason) == 1_000
        assert record.stdout == "/?"

    def test_thousands_at_once(self, store: Store) -> None:
        accept(store, *(task(f"t{number:04}") for number in range(3_000)))
        node = Node(store)
        keys = [claim.key for claim in node.claim(limit=3_000)]
        records, disowned = node.finish(*(success(key) for key in keys))
        assert (len(records), disowned) == (3_000, [])
        assert store.stats()["states"]["succeeded"] == 3_000
        assert store.finish([], home=None) == ([], [])


class TestFence:
    """The competitors' bugs: a late or second end must never overwrite what was recorded."""

    def test_a_second_end_of_the_same_attempt(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        key = node.key()
        node.finish(success(key))
        late = outcome(key, state=State.FAILED, reason="exit 1", exit_code=1)
        assert node.finish(late) == ([], [key])
        assert store.record("a").status == "succeeded"
        assert [attempt["status"] for attempt in store.get("a")["attempts"]] == ["succeeded"]

    def test_two_ends_at_the_same_time(self, store: Store) -> None:
        node = Node(store)
        for number in range(20):
            accept(store, task(f"t{number}"))
            key = node.key()
            answers = at_once(
                partial(node.finish, success(key)),
                partial(node.finish, outcome(key, state=State.FAILED, reason="lost")),
            )
            assert sorted(len(records) for records, _ in answers) == [0, 1]
            assert sorted(len(disowned) for _, disowned in answers) == [0, 1]
        assert sum(store.stats()["states"].values()) == 20

    def test_a_rescuer_that_comes_late(self, store: Store) -> None:
        """River #1302: the rescuer had read the row before the job completed, and wrote after."""
        accept(store, task("a"))
        node, rescuer = Node(store), Node(store)
        key = node.key()
        node.start(key)
        store.end_node(node.incarnation)
        (found,) = store.abandoned(10)
        node.finish(success(key))
        lost = outcome(found.claim.key, state=State.FAILED, next_state=State.SCHEDULED, reason="lost")
        assert rescuer.finish(lost) == ([], [key])
        assert states(store, "a") == ["succeeded"]

    def test_a_worker_that_comes_late(self, store: Store) -> None:
        """Solid Queue #589: the job was both finished and failed."""
        accept(store, task("a"))
        node, rescuer = Node(store), Node(store)
        key = node.key()
        rescuer.finish(outcome(key, state=State.FAILED, reason="lost"))
        assert node.finish(success(key)) == ([], [key])
        assert store.record("a").reason == "lost"
        totals = store.stats()["states"]
        assert (totals["failed"], totals["succeeded"]) == (1, 0)

    def test_an_attempt_that_is_no_longer_the_newest(self, store: Store) -> None:
        """Oban #532: an older attempt overwrote the newer one."""
        accept(store, task("a"))
        node, rescuer = Node(store), Node(store)
        old = node.key()
        rescuer.finish(outcome(old, state=State.FAILED, next_state=State.SCHEDULED, reason="lost"))
        new = rescuer.key()
        assert node.start(old) == [old]
        assert node.finish(success(old)) == ([], [old])
        assert node.finish(success(AttemptKey(id="a", attempt=old.attempt, token=new.token)))[0] == []
        assert node.finish(success(AttemptKey(id="a", attempt=new.attempt, token=old.token)))[0] == []
        (record,), _ = rescuer.finish(success(new))
        assert record.attempts == 2

    def test_the_same_end_twice_in_one_call(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        key = node.key()
        records, disowned = node.finish(success(key), outcome(key, state=State.FAILED, reason="exit 1"))
        assert ([record.status for record in records], disowned) == (["succeeded"], [])


class TestLostAnswer:
    """The commit happened, its answer did not arrive, and the caller asks again."""

    def test_of_an_end(self, store: Store) -> None:
        accept(store, task("good"), task("bad"), task("again"), task("dependent", after=["good"]))
        node = Node(store)
        good, bad, again = [claim.key for claim in node.claim()]
        ends = [
            success(good),
            outcome(bad, state=State.FAILED, reason="exit 1", exit_code=1),
            outcome(again, state=State.FAILED, next_state=State.SCHEDULED, reason="exit 1", delay_s=99.0),
        ]
        first, disowned = node.finish(*ends)
        assert ([record.id for record in first], disowned) == (["bad", "good"], [])
        second, disowned = node.finish(*ends)
        assert sorted(second, key=lambda record: record.id) == first
        assert disowned == []
        assert states(store, "good", "bad", "again", "dependent") == ["succeeded", "failed", "scheduled", "queued"]
        totals = store.stats()
        assert (totals["states"]["succeeded"], totals["states"]["failed"], totals["retried"]) == (1, 1, 1)

    def test_of_an_end_that_somebody_has_undone_since(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        end = outcome(node.key(), state=State.FAILED, reason="exit 1", exit_code=1)
        node.finish(end)
        store.retry("a")
        assert node.finish(end) == ([], [])
        assert states(store, "a") == ["queued"]
        node.run()
        assert node.finish(end) == ([], [])  # the record of the second attempt is not the first one's

    def test_of_one_that_had_no_process(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        end = outcome(
            node.key(), state=State.CANCELLED, next_state=State.QUEUED, reason="shutdown", counts=False, void=True
        )
        assert node.finish(end) == ([], [])
        assert node.finish(end) == ([], [])
        assert store.get("a")["attempts"] == []

    def test_a_sweep_with_the_same_token_is_another_writer(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        key = node.key()
        Node(store).finish(outcome(key, state=State.FAILED, reason="lost"))
        assert node.finish(outcome(key, state=State.FAILED, reason="exit 1", exit_code=1)) == ([], [key])


class TestPromote:
    def test_queues_what_is_due(self, store: Store, store_url: str) -> None:
        accept(store, *(task(f"t{number}", delay_s=3_600.0) for number in range(1_500)), task("later", delay_s=7_200.0))
        with psycopg.connect(store_url) as conn:
            conn.execute("UPDATE pysched.tasks SET due_at = now() WHERE id <> 'later'")
        assert store.promote() == pytest.approx(7_200, abs=60)
        assert len(Node(store).claim(limit=10_000)) == 1_500
        assert states(store, "later") == ["scheduled"]

    def test_nothing_scheduled(self, store: Store) -> None:
        assert store.promote() is None

    def test_two_at_once(self, store: Store, store_url: str) -> None:
        accept(store, *(task(f"t{number}", delay_s=3_600.0) for number in range(500)))
        with psycopg.connect(store_url) as conn:
            conn.execute("UPDATE pysched.tasks SET due_at = now()")
        at_once(*[store.promote] * 4)
        assert len(Node(store).claim()) == 500


class TestRecords:
    def test_owed_until_delivered(self, store: Store) -> None:
        accept(store, task("a"), task("b"))
        node = Node(store)
        node.run()
        owed = store.undelivered(node.home, 10)
        assert sorted(ids(owed)) == ["a", "b"]
        assert owed[0] == store.record(owed[0].id)
        store.delivered([owed[0]])
        store.delivered([])
        assert ids(store.undelivered(node.home, 10)) == [owed[1].id]
        assert len(store.undelivered(node.home, 1)) == 1

    def test_a_late_delivery_does_not_settle_a_newer_end(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        node.run(State.FAILED, "exit 1")
        (old,) = store.undelivered(node.home, 10)
        store.retry("a")
        node.run(State.FAILED, "exit 1")
        store.delivered([old])
        (new,) = store.undelivered(node.home, 10)
        assert new.finished_at > old.finished_at
        store.delivered([new])
        assert store.undelivered(node.home, 10) == []

    def test_what_is_left_of_a_batch_stays(self, store: Store, store_url: str) -> None:
        accept(store, *(task(f"t{number}") for number in range(5)))
        node = Node(store)
        records = node.run(State.FAILED, "exit 1")  # all ends of one statement
        store.delivered(records[:2])
        assert sorted(ids(store.undelivered(node.home, 10))) == ["t2", "t3", "t4"]
        assert store.retry("t3") is State.QUEUED  # it owes nothing until it ends again
        store.delivered(store.undelivered(node.home, 1))
        assert len(store.undelivered(node.home, 10)) == 1
        store.delivered(store.undelivered(node.home, 10))
        assert not store.standing(node.incarnation, node.home).undelivered
        with psycopg.connect(store_url) as conn:
            assert conn.execute("SELECT count(*) FROM pysched.deliveries").fetchone() == (0,)

    def test_a_batch_that_was_run_again_whole_goes(self, store: Store) -> None:
        accept(store, task("a"), task("b"))
        node = Node(store)
        node.run(State.FAILED, "exit 1")
        store.retry("a")
        store.retry("b")
        assert store.undelivered(node.home, 10) == []
        assert not store.standing(node.incarnation, node.home).undelivered

    def test_a_batch_of_no_home_to_the_first_that_asks(self, store: Store) -> None:
        accept(store, task("a"))
        (claim,) = Node(store).claim()
        store.finish([success(claim.key)], home=None)
        first, second = uuid.uuid4(), uuid.uuid4()
        assert ids(store.undelivered(first, 10)) == ["a"]
        assert store.undelivered(second, 10) == []
        store.delivered(store.undelivered(first, 10))
        assert store.undelivered(first, 10) == []

    def test_to_the_home_that_ran_it(self, store: Store) -> None:
        accept(store, task("a"))
        node = Node(store)
        node.run()
        assert store.undelivered(uuid.uuid4(), 10) == []
        assert ids(store.undelivered(node.home, 10)) == ["a"]

    def test_of_a_task_that_never_ran_to_one_home_only(self, store: Store) -> None:
        accept(store, *(task(f"t{number}") for number in range(50)))
        for number in range(50):
            store.cancel(f"t{number}")
        homes = [uuid.uuid4() for _ in range(4)]
        answers = at_once(*(partial(store.undelivered, home, 100) for home in homes))
        given = [record.id for records in answers for record in records]
        assert sorted(given) == sorted(f"t{number}" for number in range(50))
        assert [len(store.undelivered(home, 100)) for home in homes] == [len(records) for records in answers]

    def test_only_of_tasks_that_have_ended(self, store: Store) -> None:
        accept(store, task("a"))
        with pytest.raises(InputError, match="queued"):
            store.record("a")
        with pytest.raises(NotFoundError, match="nobody"):
            store.record("nobody")
