"""Nodes come, live by their lease, and go; what they held is found."""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial
from typing import Any

from pysched.model import Abandoned, State
from pysched.store.store import Others, Store
from tests.integration.store_driver import Node, accept, at_once, ids, outcome, states, success, task


def test_a_node_is_listed_while_it_lives(store: Store, store_url: str) -> None:
    node, other = Node(store), Node(store)
    listed = store.nodes()
    assert [row["incarnation"] for row in listed] == [str(node.incarnation), str(other.incarnation)]
    assert {"home": str(node.home), "host": "host", "workers": 4, "draining": False}.items() <= listed[0].items()
    assert listed[0]["lease_until"] > listed[0]["renewed_at"]
    store.end_node(node.incarnation)
    other.expire(store_url)
    assert store.nodes() == []


def test_renewal_tells_how_much_runs(store: Store, store_url: str) -> None:
    node = Node(store)
    node.expire(store_url)
    assert store.renew(node.incarnation, 60, running=3) == Others(living=0, expired=0)  # late, but nobody had noticed
    assert store.nodes()[0]["running"] == 3


def test_who_was_swept_or_has_ended_cannot_renew(store: Store, store_url: str) -> None:
    swept, ended = Node(store), Node(store)
    swept.expire(store_url)
    assert store.end_expired() == 1
    assert store.end_expired() == 0
    store.end_node(ended.incarnation)
    for node in (swept, ended):
        assert store.renew(node.incarnation, 60, running=0) is None
        store.register(node.info, 60)  # says the same again, after a lost answer: no second life
        assert store.renew(node.incarnation, 60, running=0) is None
    assert store.renew(uuid.uuid4(), 60, running=0) is None


def test_renewal_tells_of_the_others(store: Store, store_url: str) -> None:
    node = Node(store)
    assert store.renew(node.incarnation, 60, running=0) == Others(living=0, expired=0)
    other = Node(store)
    assert store.renew(node.incarnation, 60, running=0) == Others(living=1, expired=0)
    other.expire(store_url)
    assert store.renew(node.incarnation, 60, running=0) == Others(living=1, expired=1)
    store.end_node(other.incarnation)
    assert store.renew(node.incarnation, 60, running=0) == Others(living=0, expired=0)


def test_who_was_swept_may_begin_anew(store: Store, store_url: str) -> None:
    node = Node(store)
    store.drain(node.incarnation)
    node.expire(store_url)
    store.end_expired()
    store.revive(node.info, 60)
    assert store.renew(node.incarnation, 60, running=0) == Others(living=0, expired=0)
    assert store.nodes()[0]["draining"]  # it is the same node


def test_registering_twice_is_once(store: Store) -> None:
    node = Node(store)
    store.register(node.info, 60)
    assert len(store.nodes()) == 1


def test_a_new_incarnation_ends_those_before_it_in_its_home_alone(store: Store) -> None:
    home = uuid.uuid4()
    before, elsewhere = Node(store, home=home), Node(store)
    accept(store, task("a"))
    key = before.key()
    after = Node(store, home=home)
    assert store.take_over(home, after.incarnation) == 1
    assert store.take_over(home, after.incarnation) == 0
    assert store.renew(before.incarnation, 60, running=0) is None
    assert store.renew(elsewhere.incarnation, 60, running=0) == Others(living=1, expired=0)
    assert [item.claim.key for item in store.abandoned(10)] == [key]


def test_a_node_hears_of_what_there_is_to_do(store: Store) -> None:
    accept(store, task("a"), task("b"), task("never"))
    store.cancel("never")
    node, other = Node(store), Node(store)

    def there_is() -> tuple[bool, bool]:
        standing = store.standing(node.incarnation, node.home)
        return standing.abandoned, standing.undelivered

    assert there_is() == (False, True)  # one that nobody has run is everybody's
    store.delivered(store.undelivered(node.home, 10))
    assert there_is() == (False, False)
    key, _ = [claim.key for claim in other.claim()]
    other.finish(success(key))
    assert there_is() == (False, False)  # its own home delivers it
    assert store.standing(node.incarnation, other.home).undelivered
    store.end_node(other.incarnation)
    assert there_is() == (True, False)


def test_what_a_node_that_lives_holds_is_not_abandoned(store: Store) -> None:
    accept(store, task("a"))
    Node(store).claim()
    assert store.abandoned(10) == []


def test_abandoned_tells_what_had_started(store: Store, store_url: str) -> None:
    accept(store, task("started"), task("claimed"))
    node = Node(store)
    started, claimed = [claim.key for claim in node.claim()]
    node.start(started)
    node.expire(store_url)
    assert store.abandoned(10) == []  # nobody has judged it yet
    store.end_expired()
    first, second = store.abandoned(10)
    assert (first.claim.key, first.node, first.pid) == (started, str(node.incarnation), 7)
    assert first.started_at is not None
    assert (second.claim.key, second.pid, second.started_at) == (claimed, None, None)
    assert second.claim.spec == "{}"
    assert len(store.abandoned(1)) == 1


def test_a_sweep_can_be_repeated_until_its_result_is_written(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node, sweeper = Node(store), Node(store)
    key = node.key()
    node.expire(store_url)
    store.end_expired()
    assert store.abandoned(10) == store.abandoned(10)
    sweeper.finish(outcome(key, state=State.CANCELLED, next_state=State.QUEUED, reason="shutdown", counts=False))
    assert store.abandoned(10) == []
    assert ids(claim.key for claim in sweeper.claim()) == ["a"]


def test_two_sweepers_write_one_end(store: Store, store_url: str) -> None:
    accept(store, *(task(f"t{number}") for number in range(100)))
    node, *sweepers = [Node(store) for _ in range(4)]
    node.claim()
    node.expire(store_url)
    store.end_expired()

    def sweep(sweeper: Node) -> int:
        lost = [outcome(item.claim.key, state=State.FAILED, reason="lost") for item in store.abandoned(1_000)]
        records, _ = sweeper.finish(*lost)
        return len(records)

    assert sum(at_once(*(partial(sweep, sweeper) for sweeper in sweepers))) == 100
    assert store.stats()["states"]["failed"] == 100


def test_until_somebody_has_ended_its_attempts_a_late_node_may(store: Store, store_url: str) -> None:
    accept(store, task("a"))
    node = Node(store)
    key = node.key()
    node.expire(store_url)
    store.end_expired()
    store.abandoned(10)
    assert node.finish(success(key))[1] == []
    assert states(store, "a") == ["succeeded"]


def test_a_new_incarnation_adopts_what_ran_under_the_same_token(store: Store, store_url: str) -> None:
    home = uuid.uuid4()
    before, elsewhere = Node(store, home=home), Node(store)
    accept(store, task("mine"), task("queued"))
    mine, queued = [claim.key for claim in before.claim()]
    before.start(mine)
    accept(store, task("theirs"))
    theirs = elsewhere.key()
    after = Node(store, home=home)

    def adopt() -> list[Abandoned]:
        tokens = [mine.token, theirs.token, 12345]
        return store.adopt(home, after.incarnation, tokens=tokens, suspects=[mine.token])

    (adopted,) = adopt()
    assert (adopted.claim.key, adopted.holder, adopted.node) == (mine, after.incarnation, str(before.incarnation))
    assert (adopted.pid, adopted.crashes) == (7, 1)
    assert adopt() == [replace(adopted, claim=adopt()[0].claim)]  # after a lost answer: the same, and no crash more
    store.take_over(home, after.incarnation)
    assert [item.claim.key for item in store.abandoned(10)] == [queued]
    assert after.start(mine) == []
    assert after.finish(success(mine))[1] == []
    assert adopt() == []
    assert store.get("mine")["attempts"][0]["node"] == str(after.incarnation)


def test_what_was_adopted_keeps_its_launcher_until_it_ends(store: Store, store_url: str) -> None:
    home = uuid.uuid4()
    first = Node(store, home=home)
    accept(store, task("a"))
    key = first.key()
    first.start(key)
    for _ in range(2):
        node = Node(store, home=home)
        (adopted,) = store.adopt(home, node.incarnation, tokens=[key.token], suspects=[])
        assert (adopted.node, adopted.crashes) == (str(first.incarnation), 0)
        store.take_over(home, node.incarnation)
    node.expire(store_url)
    store.end_expired()
    (found,) = store.abandoned(10)
    assert (found.holder, found.node) == (node.incarnation, str(first.incarnation))
    node.finish(outcome(key, state=State.FAILED, next_state=State.QUEUED, reason="lost", crashed=True))
    again = Node(store)
    claimed = again.key()
    again.start(claimed)
    again.expire(store_url)
    store.end_expired()
    (found,) = store.abandoned(10)
    assert (found.node, found.crashes) == (str(again.incarnation), 1)


def test_a_sweep_of_the_old_holder_does_not_end_what_was_adopted(store: Store, store_url: str) -> None:
    home = uuid.uuid4()
    before = Node(store, home=home)
    accept(store, task("a"))
    key = before.key()
    before.start(key)
    before.expire(store_url)
    store.end_expired()
    (found,) = store.abandoned(10)
    after = Node(store, home=home)
    store.adopt(home, after.incarnation, tokens=[key.token], suspects=[])
    sweeper = Node(store)
    lost = outcome(key, state=State.FAILED, reason="lost", crashed=True, holder=found.holder)
    assert sweeper.finish(lost) == ([], [key])
    assert after.finish(success(key))[1] == []
    assert states(store, "a") == ["succeeded"]


def test_crashes_are_counted_one_after_the_other(store: Store, store_url: str) -> None:
    accept(store, task("a"))

    def crashes() -> int:
        """What the next node to die would be told."""
        node = Node(store)
        node.start(node.key())
        node.expire(store_url)
        store.end_expired()
        (found,) = store.abandoned(10)
        return found.crashes

    def end(**how: Any) -> None:
        (found,) = store.abandoned(10)
        again = {"state": State.FAILED, "next_state": State.SCHEDULED, "reason": "lost", **how}
        Node(store).finish(outcome(found.claim.key, **again))

    assert crashes() == 0
    end(crashed=True)
    assert crashes() == 1
    end(state=State.CANCELLED, next_state=State.QUEUED, reason="shutdown", counts=False)
    assert crashes() == 1
    end(crashed=True)
    assert crashes() == 2
    end(reason="exit 1")
    assert crashes() == 0
