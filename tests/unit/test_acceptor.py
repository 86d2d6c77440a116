"""Group commit: who shares a transaction, who gets which verdict, and that nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pysched.api.acceptor import FLUSH_TASKS, Acceptor
from pysched.api.backend import Verdicts
from pysched.draft import Entry
from pysched.errors import ConflictError, DatabaseUnreachable, Problem, StoreError, TaskError
from pysched.model import Acceptance, State
from pysched.task import Task, parse_task


def task(task_id: str) -> Task:
    return parse_task({"id": task_id})


class Store:
    """Says yes, after `gate` is open; keeps what each commit carried."""

    def __init__(self, verdicts: Callable[[Sequence[Entry]], Verdicts] | None = None) -> None:
        self.commits: list[list[str | None]] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        self._verdicts = verdicts or (lambda tasks: [yes(each) for each in tasks])

    def accept(self, tasks: Sequence[Entry]) -> Verdicts:
        self.commits.append([each.id for each in tasks])
        self.started.set()
        assert self.gate.wait(30)
        return self._verdicts(tasks)


def yes(each: Entry) -> Acceptance:
    assert each.id is not None
    return Acceptance(id=each.id, state=State.QUEUED, created=True)


async def submitted(acceptor: Acceptor, ids: Sequence[str], *, size: int = 1) -> list[asyncio.Task[Acceptance]]:
    """Requests that wait in the acceptor."""
    requests = [asyncio.create_task(acceptor.accept(task(each), size)) for each in ids]
    await asyncio.sleep(0)  # each runs up to its wait
    return requests


async def under_way(store: Store) -> None:
    assert await asyncio.to_thread(store.started.wait, 30)


def test_what_arrives_during_a_commit_shares_the_next() -> None:
    async def scenario() -> None:
        store = Store()
        acceptor = Acceptor(store.accept)
        first = await submitted(acceptor, ["a"])
        await under_way(store)
        rest = await submitted(acceptor, ["b", "c", "d"])
        assert not any(request.done() for request in (*first, *rest))
        store.gate.set()
        answers = await asyncio.gather(*first, *rest)
        assert store.commits == [["a"], ["b", "c", "d"]]
        assert [answer.id for answer in answers] == ["a", "b", "c", "d"]

    asyncio.run(scenario())


def test_each_request_gets_its_own_verdict() -> None:
    def verdicts(tasks: Sequence[Entry]) -> Verdicts:
        refusals: dict[str, ConflictError | TaskError] = {
            "taken": ConflictError("taken"),
            "wrong": TaskError(Problem("after", "names nobody")),
        }
        return [refusals.get(each.id or "") or yes(each) for each in tasks]

    async def scenario() -> None:
        store = Store(verdicts)
        store.gate.set()
        acceptor = Acceptor(store.accept)
        requests = await submitted(acceptor, ["a", "taken", "b", "wrong", "c"])
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Acceptance, ConflictError, Acceptance, TaskError, Acceptance]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(DatabaseUnreachable("gone"), DatabaseUnreachable), (StoreError("no"), StoreError), (KeyError("bug"), StoreError)],
)
def test_a_failed_commit_fails_all_of_it_and_nothing_after_it(failure: Exception, seen: type[Exception]) -> None:
    def verdicts(tasks: Sequence[Entry]) -> Verdicts:
        if len(store.commits) == 1:
            raise failure
        return [yes(each) for each in tasks]

    store = Store(verdicts)

    async def scenario() -> None:
        acceptor = Acceptor(store.accept)
        failing = await submitted(acceptor, ["a", "b"])
        await under_way(store)
        fine = await submitted(acceptor, ["c"])
        store.gate.set()
        answers = await asyncio.gather(*failing, return_exceptions=True)
        assert [type(answer) for answer in answers] == [seen, seen]
        assert answers[0] is not answers[1]
        assert (await fine[0]).id == "c"

    asyncio.run(scenario())


def test_a_store_that_forgets_a_verdict_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        store = Store(lambda tasks: [yes(tasks[0])])
        store.gate.set()
        requests = await submitted(Acceptor(store.accept), ["a", "b"])
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreError, StoreError]

    asyncio.run(scenario())


@pytest.mark.parametrize(("limits", "size"), [({"queue_tasks": 2}, 1), ({"queue_bytes": 20}, 10)])
def test_what_waits_is_bounded(limits: dict[str, Any], size: int) -> None:
    async def scenario() -> None:
        store = Store()
        acceptor = Acceptor(store.accept, **limits)
        requests = await submitted(acceptor, ["a"], size=size)
        await under_way(store)  # it no longer waits
        requests += await submitted(acceptor, ["b", "c"], size=size)
        with pytest.raises(asyncio.QueueFull):
            await acceptor.accept(task("d"), size)
        store.gate.set()
        await asyncio.gather(*requests)
        assert (await acceptor.accept(task("d"), size)).id == "d"

    asyncio.run(scenario())


def test_one_transaction_is_bounded() -> None:
    async def scenario() -> None:
        store = Store()
        acceptor = Acceptor(store.accept)
        requests = await submitted(acceptor, ["first"])
        await under_way(store)
        requests += await submitted(acceptor, [f"t{number}" for number in range(FLUSH_TASKS + 1)])
        store.gate.set()
        await asyncio.gather(*requests)
        assert [len(commit) for commit in store.commits] == [1, FLUSH_TASKS, 1]

    asyncio.run(scenario())


def test_closing_answers_all_that_was_taken_and_takes_no_more() -> None:
    async def scenario() -> None:
        store = Store()
        acceptor = Acceptor(store.accept)
        requests = await submitted(acceptor, ["a"])
        await under_way(store)
        requests += await submitted(acceptor, ["b"])
        closing = asyncio.create_task(acceptor.close())
        await asyncio.sleep(0)
        with pytest.raises(asyncio.QueueFull):
            await acceptor.accept(task("c"), 1)
        assert not closing.done()
        store.gate.set()
        await closing
        assert all(request.done() for request in requests)
        assert store.commits == [["a"], ["b"]]

    asyncio.run(scenario())


def test_a_request_that_went_away_harms_nobody() -> None:
    async def scenario() -> None:
        store = Store()
        acceptor = Acceptor(store.accept)
        gone, stays = await submitted(acceptor, ["a", "b"])
        await under_way(store)
        gone.cancel()
        store.gate.set()
        assert (await stays).id == "b"
        assert store.commits == [["a", "b"]]

    asyncio.run(scenario())


class TestInsert:
    def test_what_is_new_needs_no_thread(self) -> None:
        async def scenario() -> None:
            store = Store()
            acceptor = Acceptor(store.accept, inserting({"a", "b"}))
            later = parse_task({"id": "b", "delay_s": 5})
            answers = await asyncio.gather(acceptor.accept(task("a"), 1), acceptor.accept(later, 1))
            assert [(each.id, each.state, each.created) for each in answers] == [
                ("a", State.QUEUED, True),
                ("b", State.SCHEDULED, True),
            ]
            assert store.commits == []

        asyncio.run(scenario())

    def test_the_store_is_asked_for_all_else(self) -> None:
        offered: list[str | None] = []

        async def insert(tasks: Sequence[Entry]) -> set[str] | None:
            offered.extend(each.id for each in tasks)
            return {"new", "twice"}

        async def scenario() -> None:
            store = Store()
            store.gate.set()
            acceptor = Acceptor(store.accept, insert)
            tasks = [task("new"), task("twice"), task("old"), task("twice"), parse_task({"id": "z", "after": ["new"]})]
            answers = await asyncio.gather(*(acceptor.accept(each, 1) for each in tasks))
            assert [answer.id for answer in answers] == ["new", "twice", "old", "twice", "z"]
            assert offered == ["new", "twice", "old"]
            assert store.commits == [["old", "twice", "z"]]

        asyncio.run(scenario())

    @pytest.mark.parametrize("failure", [None, KeyError("bug")])
    def test_the_store_is_asked_when_nobody_knows(self, failure: Exception | None) -> None:
        async def insert(tasks: Sequence[Entry]) -> set[str] | None:
            if failure is not None:
                raise failure
            return None

        async def scenario() -> None:
            store = Store()
            store.gate.set()
            acceptor = Acceptor(store.accept, insert)
            assert (await acceptor.accept(task("a"), 1)).id == "a"
            assert store.commits == [["a"]]

        asyncio.run(scenario())

    def test_nobody_waits_for_ever(self) -> None:
        async def insert(tasks: Sequence[Entry]) -> set[str] | None:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.sleep(0)
            return None

        async def scenario() -> None:
            acceptor = Acceptor(Store().accept, insert)
            with pytest.raises(StoreError, match="stopped"):
                await acceptor.accept(task("a"), 1)

        asyncio.run(scenario())


def inserting(new: set[str]) -> Callable[[Sequence[Entry]], Awaitable[set[str] | None]]:
    async def insert(tasks: Sequence[Entry]) -> set[str] | None:
        return new & {str(each.id) for each in tasks}

    return insert
