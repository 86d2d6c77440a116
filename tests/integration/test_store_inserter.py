"""Single tasks from an event loop: the same as `accept` writes, and nothing claimed that is not known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timezone

import psycopg
import pytest

from pysched.model import AttemptKey
from pysched.offers import Given
from pysched.selection import Selection
from pysched.store import inserter as module
from pysched.store.inserter import Inserter
from pysched.store.store import Store
from pysched.task import Task
from tests.integration.store_driver import Node, accept, outcome, states, task
from tests.integration.test_store_loading import many, rows

DEADLINE_S = 60.0


async def opened(inserter: Inserter) -> None:
    """The first call finds no connection, and has one made."""
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while await inserter.insert([]) is None:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def driven(store: Store, scenario: Callable[[Inserter], Awaitable[None]]) -> None:
    async def run() -> None:
        inserter = store.inserter()
        try:
            await opened(inserter)
            await scenario(inserter)
        finally:
            await inserter.close()

    asyncio.run(run())


def insert(store: Store, tasks: Sequence[Task]) -> set[str] | None:
    found: list[set[str] | None] = []

    async def scenario(inserter: Inserter) -> None:
        found.append(await inserter.insert(tasks))

    driven(store, scenario)
    return found[0]


def test_it_writes_what_accept_writes(store: Store, store_url: str) -> None:
    accept(store, *many(prefix="accepted"))
    assert insert(store, many(prefix="inserted")) == {f"inserted{number}" for number in range(40)}
    assert rows(store_url, "accepted") == rows(store_url, "inserted")
    stats = store.stats()
    assert (stats["submitted"], stats["states"]["scheduled"], stats["states"]["queued"]) == (80, 12, 68)
    assert len(store.page(Selection(tags=("x",)), limit=100).rows) == 40  # by their tag


def test_order_of_arrival_is_the_order_of_claims(store: Store) -> None:
    insert(store, [task(f"t{number}") for number in range(30)])
    assert [claim.key.id for claim in Node(store).claim()] == [f"t{number}" for number in range(30)]


def test_what_is_there_already_is_not_said_to_be_new(store: Store) -> None:
    accept(store, task("b"))
    assert insert(store, [task("a"), task("b", rank=1), task("c")]) == {"a", "c"}
    assert store.submitted() == 3


def test_nodes_hear_of_it(store: Store, store_url: str) -> None:
    with psycopg.connect(store_url, autocommit=True) as ear:
        ear.execute("LISTEN pysched")
        insert(store, [task("now"), task("later", delay_s=60)])
        heard = {notice.payload for notice in ear.notifies(timeout=DEADLINE_S, stop_after=2)}
    assert heard == {"ready", "due"}


def test_several_transactions_at_once(store: Store) -> None:
    async def scenario(inserter: Inserter) -> None:
        batches = [[task(f"t{number}-{each}", command="x" * 60_000) for each in range(40)] for number in range(6)]
        found = await asyncio.gather(*(inserter.insert(batch) for batch in batches))  # more than a socket takes
        assert [*found] == [{each.id for each in batch} for batch in batches]

    driven(store, scenario)
    assert store.submitted() == 240


def test_what_the_server_refuses_is_not_known_and_the_next_goes_on(store: Store) -> None:
    async def scenario(inserter: Inserter) -> None:
        wrong = task("wrong").model_copy(update={"name": "a\0b"})  # no task that was read can hold it
        found = await asyncio.gather(inserter.insert([wrong]), inserter.insert([task("right")]))
        assert [*found] == [None, {"right"}]

    driven(store, scenario)
    assert store.submitted() == 1


def test_a_connection_that_ends_is_made_anew(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)

    async def scenario(inserter: Inserter) -> None:
        with psycopg.connect(store_url) as other:
            other.execute("LOCK TABLE pysched.tasks IN SHARE MODE")
            flight = asyncio.create_task(inserter.insert([task("a")]))
            await waiting_for_a_lock(store_url)
            await asyncio.to_thread(end_waiting, store_url)
            assert await flight is None
        await opened(inserter)
        assert await inserter.insert([task("a")]) == {"a"}

    driven(store, scenario)


def test_silence_is_its_end_and_accept_finds_out(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.05)

    async def scenario(inserter: Inserter) -> None:
        with psycopg.connect(store_url) as other:
            other.execute("LOCK TABLE pysched.tasks IN SHARE MODE")
            assert await inserter.insert([task("a")]) is None
            other.rollback()
        (verdict,) = await asyncio.to_thread(accept, store, task("a"))
        assert verdict.id == "a"  # accepted now, or found

    driven(store, scenario)
    assert store.submitted() == 1


def test_nothing_is_under_way_when_it_is_closed(store: Store) -> None:
    async def scenario() -> None:
        inserter = store.inserter()
        assert await inserter.insert([task("a")]) is None  # a connection is being made
        await inserter.close()
        assert await inserter.insert([task("a")]) is None
        await inserter.close()

    asyncio.run(scenario())
    assert store.submitted() == 0


_WAITING = "wait_event_type = 'Lock' AND query LIKE 'PREPARE submit%'"


async def waiting_for_a_lock(url: str) -> None:
    def found() -> bool:
        with psycopg.connect(url) as conn:
            return bool(conn.execute(f"SELECT FROM pg_stat_activity WHERE {_WAITING}").fetchall())

    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not await asyncio.to_thread(found):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def end_waiting(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_WAITING}")


def hand_over(store: Store, node: Node, tasks: Sequence[Task], schema: int | None = None) -> Mapping[str, Given | None]:
    found: list[Mapping[str, Given | None] | None] = []

    async def scenario(inserter: Inserter) -> None:
        version = store.schema if schema is None else schema
        found.append(await inserter.hand_over(tasks, str(node.incarnation), version))

    driven(store, scenario)
    (given,) = found
    assert given is not None
    return given


def test_what_is_given_is_as_if_accepted_and_claimed(store: Store, store_url: str) -> None:
    simple = [each for each in many(prefix="accepted") if not each.delay_s and each.demand is None]
    node = Node(store)
    accept(store, *simple)
    claims = {claim.key.id.removeprefix("accepted"): claim for claim in node.claim()}
    same = [each.model_copy(update={"id": str(each.id).replace("accepted", "given")}) for each in simple]
    given = hand_over(store, node, same)
    assert rows(store_url, "accepted") == rows(store_url, "given")
    assert {task_id.removeprefix("given") for task_id in given} == claims.keys()
    for task_id, got in given.items():
        assert got is not None
        token, sequence, submitted_us = got
        twin = claims[task_id.removeprefix("given")]
        key = AttemptKey(task_id, twin.key.attempt, token)
        assert token > twin.key.token
        assert sequence > twin.sequence
        submitted_at = datetime.fromtimestamp(submitted_us / 1e6, timezone.utc)
        assert store.get(task_id)["submitted_at"] == submitted_at.isoformat(timespec="microseconds").replace(
            "+00:00", "Z"
        )
        assert node.start(key) == []
        assert node.finish(outcome(key))[1] == []
    assert node.claim() == []


def paused(store: Store, node: Node, url: str) -> None:
    store.set_paused(True)


def draining(store: Store, node: Node, url: str) -> None:
    store.drain(node.incarnation)


def expired(store: Store, node: Node, url: str) -> None:
    node.expire(url)


def ended(store: Store, node: Node, url: str) -> None:
    store.end_node(node.incarnation)


def another_waits(store: Store, node: Node, url: str) -> None:
    accept(store, task("other", priority="LOW"))


def a_sized_one_waits(store: Store, node: Node, url: str) -> None:
    accept(store, task("other", cpus=64))


@pytest.mark.parametrize("why", [paused, draining, expired, ended, another_waits, a_sized_one_waits])
def test_a_node_that_may_not_claim_is_given_nothing(
    store: Store, store_url: str, why: Callable[[Store, Node, str], None]
) -> None:
    node = Node(store)
    why(store, node, store_url)
    with psycopg.connect(store_url, autocommit=True) as ear:
        ear.execute("LISTEN pysched")
        assert hand_over(store, node, [task("a"), task("b")]) == {"a": None, "b": None}
        assert [notice.payload for notice in ear.notifies(timeout=DEADLINE_S, stop_after=1)] == ["ready"]
    assert states(store, "a", "b") == ["queued", "queued"]
    assert store.unstarted(node.incarnation) == []
    store.set_paused(False)
    assert {claim.key.id for claim in Node(store, cpus=1).claim()} >= {"a", "b"}  # in nobody's name yet


def test_a_node_that_knows_too_little_is_given_nothing(store: Store, store_url: str) -> None:
    node = Node(store)
    with psycopg.connect(store_url) as conn:
        (least,) = conn.execute("SELECT max(number) FROM pysched.migrations WHERE NOT additive").fetchone() or (0,)
    assert hand_over(store, node, [task("a")], schema=least - 1) == {"a": None}
    store.cancel("a")
    assert hand_over(store, node, [task("b")], schema=least)["b"] is not None


def test_nobody_is_told_of_what_is_given(store: Store, store_url: str) -> None:
    node = Node(store)
    with psycopg.connect(store_url, autocommit=True) as ear:
        ear.execute("LISTEN pysched")
        assert hand_over(store, node, [task("a")])["a"] is not None
        assert list(ear.notifies(timeout=0)) == []


def test_what_is_there_is_not_given_again(store: Store) -> None:
    node = Node(store)
    accept(store, task("a"))
    assert [claim.key.id for claim in node.claim()] == ["a"]
    given = hand_over(store, node, [task("a"), task("b")])
    assert [*given] == ["b"]
    assert store.submitted() == 2
