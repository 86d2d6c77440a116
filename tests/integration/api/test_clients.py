"""Both clients against a real control plane: what takes streams and several requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched import AsyncClient, Client
from pysched.errors import ConflictError, NotFoundError, TaskError, Unauthorized
from tests.integration.api.conftest import TOKEN, Api


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, TOKEN) as client:
        yield client


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_in_the_order_in_which_they_end(api: Api, client: Client) -> None:
    first, second, third = (client.submit({"command": "true"})["id"] for _ in range(3))
    api.worker.run(second)
    ended = client.as_completed([first, second, third])
    assert next(ended)["id"] == second  # by now one listens
    api.worker.run(third)
    assert next(ended)["id"] == third
    api.worker.run(first, exit_code=0)
    assert [task["id"] for task in ended] == [first]


def test_many_at_once(api: Api, client: Client) -> None:
    ids = [each["id"] for each in client.submit_many({"command": f"echo {number}"} for number in range(120))]
    worker = in_thread(api.worker.run_all)
    assert {task["id"] for task in client.as_completed(ids)} == set(ids)
    worker.join()
    assert all(task["status"] == "succeeded" for task in client.wait(ids).values())
    assert {task["id"] for task in client.tasks(text="echo", status="succeeded")} >= set(ids)


def test_it_gives_up_in_time(client: Client) -> None:
    task_id = client.submit({"delay_s": 3600})["id"]
    with pytest.raises(TimeoutError, match=f"{task_id} is scheduled"):
        list(client.as_completed([task_id], 0.2))
    with pytest.raises(TimeoutError, match=f"{task_id} is scheduled"):
        client.wait([task_id], 0.01)
    assert client.cancel(task_id)["status"] == "cancelled"
    assert client.wait([task_id])[task_id]["reason"] == "user"


def test_a_log_that_grows_is_followed_to_its_end(api: Api, client: Client, tmp_path: Path) -> None:
    task_id = client.submit({"command": "true", "max_retries": 0})["id"]
    (tmp_path / "out").write_bytes(b"one\n\xff\n")
    api.worker.run(task_id, stdout=tmp_path / "out")
    assert b"".join(client.logs(task_id, follow=True)) == b"one\n\xff\n"
    assert b"".join(client.logs(task_id)) == b"one\n\xff\n"
    assert b"".join(client.logs(task_id, offset=4)) == b"\xff\n"
    with pytest.raises(NotFoundError):
        list(client.logs("no-such-task", follow=True))


def test_errors(client: Client, api: Api) -> None:
    client.submit({"id": "taken", "command": "true"})
    with pytest.raises(ConflictError):
        client.submit({"id": "taken", "command": "false"})
    with pytest.raises(TaskError, match="task 1: rank"):
        client.submit_many([{"command": "true"}, {"rank": "x"}])
    with Client(api.url, "wrong") as stranger, pytest.raises(Unauthorized):
        list(stranger.as_completed(["taken"]))


def test_the_asynchronous_client_does_the_same(api: Api, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"said\n")

    async def main() -> None:
        async with AsyncClient(api.url, TOKEN) as client:
            first, second = [each["id"] for each in await client.submit_many([{"command": "a"}, {"command": "b"}])]
            ended = client.as_completed([first, second])
            await asyncio.to_thread(api.worker.run, second, stdout=tmp_path / "out")
            assert (await anext(ended))["id"] == second
            await asyncio.to_thread(api.worker.run, first)
            assert [task["id"] async for task in ended] == [first]
            assert (await client.wait([first]))[first]["status"] == "succeeded"
            assert [piece async for piece in client.logs(second, follow=True)] == [b"said\n"]
            assert [piece async for piece in client.logs(second)] == [b"said\n"]
            assert second in [task["id"] async for task in client.tasks(status="succeeded")]
            waits = await client.submit({"delay_s": 3600})
            with pytest.raises(TimeoutError):
                [task async for task in client.as_completed([waits["id"]], 0.2)]
            assert (await client.cancel_all(id=waits["id"]))["cancelled"] == 1
            with pytest.raises(NotFoundError):
                await client.get("no-such-task")

    asyncio.run(main())
