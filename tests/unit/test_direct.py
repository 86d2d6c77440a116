"""Which submissions the API gives to its node, and that it is honest with both when nobody knows."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pysched import offers
from pysched.api.direct import Direct
from pysched.draft import Entry
from pysched.offers import Given
from pysched.task import Task, parse_task

DEADLINE_S = 60.0
GIVEN: Given = (7, 1, 1_700_000_000_000_000)


def task(task_id: str, **fields: Any) -> Task:
    return parse_task({"id": task_id, **fields})


class Store:
    """Says yes to all, through either door."""

    def __init__(self) -> None:
        self.inserted: list[str] = []
        self.handed: list[tuple[str, str, int]] = []
        self.known = True
        self.gate: asyncio.Event | None = None

    async def insert(self, tasks: Sequence[Entry]) -> set[str] | None:
        self.inserted += [str(each.id) for each in tasks]
        return {str(each.id) for each in tasks}

    async def hand_over(self, tasks: Sequence[Entry], node: str, schema: int) -> Mapping[str, Given | None] | None:
        if self.gate is not None:
            await self.gate.wait()
        self.handed += [(str(each.id), node, schema) for each in tasks]
        return {str(each.id): GIVEN for each in tasks if each.id != "there"} if self.known else None


class Node:
    """The node's end, which says what a test says."""

    def __init__(self, home: Path) -> None:
        self.listening = offers.listener(home)
        self.listening.setblocking(False)
        self.peer: socket.socket | None = None

    async def hear(self) -> list[Any]:
        assert self.peer is not None
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.peer, 100_000), DEADLINE_S)
        return offers.unpacked(data) if data else ["end"]

    def say(self, kind: str, *content: Any) -> None:
        assert self.peer is not None
        self.peer.send(offers.packet(kind, *content))


class Rig:
    def __init__(self, home: Path) -> None:
        self.store = Store()
        self.node = Node(home)
        self.direct = Direct(home, self.store.insert, self.store.hand_over)

    async def meet(self, room: int = 4) -> None:
        """The first submission finds the node."""
        await self.direct.insert([task("first")])
        self.node.peer, _ = await asyncio.get_running_loop().sock_accept(self.node.listening)
        self.node.peer.setblocking(False)
        self.node.say("node", "n1", 9)
        self.node.say("room", room)
        await settled()


async def settled() -> None:
    """What lies in sockets has been heard."""
    for _ in range(5):
        await asyncio.sleep(0)


def driven(tmp_path: Path, scenario: Callable[[Rig], Awaitable[None]]) -> Rig:
    rig = Rig(tmp_path)

    async def run() -> None:
        try:
            await scenario(rig)
        finally:
            rig.direct.close()

    try:
        asyncio.run(run())
    finally:
        rig.node.listening.close()
        if rig.node.peer is not None:
            rig.node.peer.close()
    return rig


def test_a_submission_is_given_where_there_is_room(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.meet()
        a = task("a", priority="HIGH", rank=3, command="x")
        assert await rig.direct.insert([a, task("there")]) == {"a"}
        may, did = await rig.node.hear(), await rig.node.hear()
        assert may == ["may", [["a", 0, 3, a.spec()], ["there", 1, 0, "{}"]]]
        assert did == ["did", [[*GIVEN], None]]

    rig = driven(tmp_path, scenario)
    assert rig.store.handed == [("a", "n1", 9), ("there", "n1", 9)]
    assert rig.store.inserted == ["first"]


def test_no_more_than_there_is_room_for(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.meet(room=2)
        await rig.direct.insert([task("a"), task("b"), task("c")])
        await rig.direct.insert([task("d")])
        await rig.direct.insert([task("e")])
        await rig.direct.insert([task("f")])
        rig.node.say("room", 3)
        await settled()
        await rig.direct.insert([task("g")])

    rig = driven(tmp_path, scenario)
    assert [name for name, _, _ in rig.store.handed] == ["d", "e", "g"]
    assert rig.store.inserted == ["first", "a", "b", "c", "f"]


@pytest.mark.parametrize(
    "fields",
    [{"delay_s": 5}, {"cpus": 1}, {"type": "ml"}, {"command": "x" * 20_000}],
    ids=["later", "sized", "ml", "long"],
)
def test_what_is_not_simple_is_for_whoever_claims_it(tmp_path: Path, fields: dict[str, Any]) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.meet()
        await rig.direct.insert([task("a", **fields)])

    assert driven(tmp_path, scenario).store.inserted == ["first", "a"]


def test_when_nobody_knows_the_node_is_left_to_ask(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.meet()
        rig.store.known = False
        assert await rig.direct.insert([task("a")]) is None
        assert (await rig.node.hear())[0] == "may"
        assert await rig.node.hear() == ["end"]

    driven(tmp_path, scenario)


def test_a_node_that_ends_gets_what_was_open_and_no_more(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.meet()
        rig.store.gate = asyncio.Event()
        under_way = asyncio.create_task(rig.direct.insert([task("a")]))
        assert (await rig.node.hear())[0] == "may"
        assert rig.node.peer is not None
        rig.node.peer.shutdown(socket.SHUT_WR)
        await settled()
        await rig.direct.insert([task("b")])
        rig.store.gate.set()
        assert await under_way == {"a"}
        assert (await rig.node.hear())[0] == "did"
        assert await rig.node.hear() == ["end"]

    assert driven(tmp_path, scenario).store.inserted == ["first", "b"]


def test_a_node_that_is_gone_is_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pysched.api.direct._AGAIN_S", 0.0)

    async def scenario(rig: Rig) -> None:
        await rig.meet()
        assert rig.node.peer is not None
        rig.node.peer.close()
        assert await rig.direct.insert([task("a")]) == {"a"}  # whatever was noticed when
        await settled()
        await rig.meet()
        await rig.direct.insert([task("b")])

    assert "b" in [name for name, _, _ in driven(tmp_path, scenario).store.handed]


def test_without_a_node_all_is_as_ever(tmp_path: Path) -> None:
    async def run() -> None:
        store = Store()
        direct = Direct(tmp_path / "nowhere", store.insert, store.hand_over)
        assert await direct.insert([task("a")]) == {"a"}
        direct.close()

    asyncio.run(run())


@pytest.mark.parametrize("words", [b"{", b'["room"]', b'["node",1]', b'["room",1,2]'])
def test_what_makes_no_sense_ends_the_connection(tmp_path: Path, words: bytes) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.meet()
        assert rig.node.peer is not None
        rig.node.peer.send(words)
        await settled()
        assert await rig.node.hear() == ["end"]
        assert await rig.direct.insert([task("a")]) == {"a"}

    assert driven(tmp_path, scenario).store.inserted == ["first", "a"]
