"""Lone submissions go to the node of the API's home in the commit that accepts them, and whoever dies loses none."""

from __future__ import annotations

import asyncio
import json

import psycopg

from pysched import offers
from pysched.client import Client
from pysched.store.store import Store
from pysched.task import Task
from tests.acceptance.conftest import DEADLINE_S, Site, wait_until


def test_a_lone_submission_is_never_announced_and_runs(site: Site) -> None:
    site.node()
    api = site.start("api", "--port", "0")
    wait_until((site.home / "api.json").exists, "the API", DEADLINE_S)
    address, token = json.loads((site.home / "api.json").read_text())["url"], (site.home / "token").read_text().strip()
    with Client(address, token=token) as client, psycopg.connect(site.database, autocommit=True) as ear:
        client.wait([client.submit({"command": ["true"]})["id"]], timeout_s=DEADLINE_S)  # it finds its connections
        wait_until(lambda: _is_silent(client, ear), "a submission that is given to the node", DEADLINE_S)
    api.terminate()


def _is_silent(client: Client, ear: psycopg.Connection) -> bool:
    """Whether nobody was told of a submission that has been run; the first ones may go the other way, while room is
    not told of."""
    ear.execute("LISTEN pysched")
    given = client.submit({"command": ["true"]})
    done = client.wait([given["id"]], timeout_s=DEADLINE_S)[given["id"]]
    assert (done["exit_code"], len(done["attempts"])) == (0, 1)
    ear.execute("NOTIFY pysched, 'mark'")
    heard = []
    for notice in ear.notifies(timeout=DEADLINE_S):
        if notice.payload == "mark":
            break
        heard.append(notice.payload)
    ear.execute("UNLISTEN pysched")
    return "ready" not in heard


def test_what_an_api_has_committed_and_not_told_runs_once(site: Site) -> None:
    node = site.node()
    with Store(site.database) as store:
        link = offers.connection(site.home)
        link.setblocking(True)
        kind, incarnation, schema = offers.unpacked(link.recv(1000))
        assert kind == "node"
        tasks = [Task(id=f"t{number}", command=["sh", "-c", "echo ran"]) for number in range(3)]
        link.send(offers.packet("may", [[each.id, 1, 0, each.spec()] for each in tasks]))
        given = asyncio.run(_handed_over(store, tasks, incarnation, schema))
        assert all(given.values())
        link.close()  # as if killed
    done = site.all_done(3)
    for record in done.values():
        assert (record["status"], record["attempts"]) == ("succeeded", 1)
        with open(record["stdout"]) as log:
            assert log.read() == "ran\n"
    assert "fell silent" in node.messages


async def _handed_over(store: Store, tasks: list[Task], node: str, schema: int) -> dict[str, object]:
    inserter = store.inserter()
    try:
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while (given := await inserter.hand_over(tasks, node, schema)) is None:  # until it is connected
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        return {**given}
    finally:
        await inserter.close()
