"""The client for asyncio; what it can do is what `Client` can, whose methods say more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pysched.client import calls, events, waiting
from pysched.client.blocking import RETRIES, TIMEOUT_S
from pysched.client.calls import Call, Chunk, Filters, Page, TaskInput
from pysched.client.events import Event, Subscription
from pysched.client.results import (
    Acceptances,
    Accepted,
    Explanation,
    Health,
    NewToken,
    Nodes,
    Stats,
    TaskDetail,
    TaskSummary,
    Token,
    Tokens,
)
from pysched.client.wire import Lost, NotSent, Request, Response
from pysched.discovery import Address, discover, is_loopback

if TYPE_CHECKING:
    import httpx2 as httpx
    from typing_extensions import Unpack
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

T = TypeVar("T")


class AsyncClient:
    """Speaks to the control plane from asyncio; an async context manager.

    The same methods as `Client`, the same errors, the same rules about trying again.
    `transport` replaces the network, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        home: str | Path | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        address = discover(url=url, token=token, home=home)
        self.url = address.url
        self._retries = retries
        self._http = httpx.AsyncClient(**_options(address, timeout_s), transport=transport)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────

    async def submit(self, task: TaskInput) -> Accepted:
        return await self._send(calls.submit(task))

    async def submit_many(self, tasks: Iterable[TaskInput]) -> Acceptances:
        return await self._send(calls.submit_many(tasks))

    async def get(self, task_id: str) -> TaskDetail:
        return await self._send(calls.get(task_id))

    async def explain(self, task_id: str) -> Explanation:
        return await self._send(calls.explain(task_id))

    async def list(self, *, limit: int = 100, before: int | None = None, **filters: Unpack[Filters]) -> Page:
        return await self._send(calls.page(filters, limit, before))

    async def tasks(self, **filters: Unpack[Filters]) -> AsyncIterator[TaskSummary]:
        before: int | None = None
        while True:
            page = await self.list(limit=1000, before=before, **filters)
            for task in page.tasks:
                yield task
            before = page.next
            if before is None:
                return

    async def cancel(self, task_id: str) -> Accepted:
        return await self._send(calls.cancel(task_id))

    async def retry(self, task_id: str) -> Accepted:
        return await self._send(calls.retry(task_id))

    async def cancel_all(self, **filters: Unpack[Filters]) -> dict[str, Any]:
        return await self._drive(waiting.bulk(calls.cancel_all, filters))

    async def retry_all(self, **filters: Unpack[Filters]) -> dict[str, Any]:
        return await self._drive(waiting.bulk(calls.retry_all, filters))

    # ── until something happens ──────────────────────────────────────────────────────────────────────────────

    async def wait(self, ids: Iterable[str], timeout_s: float | None = None) -> dict[str, TaskDetail]:
        return await self._drive(waiting.wait(ids, timeout_s))

    async def as_completed(self, ids: Iterable[str], timeout_s: float | None = None) -> AsyncIterator[TaskDetail]:
        left = dict.fromkeys(ids)
        if not left:
            return
        deadline = waiting.deadline_of(timeout_s)
        async with aclosing(self._events(events.ends_of_tasks(), deadline)) as stream:
            async for event in stream:
                if event.kind in {"ready", "reset"}:
                    ended = await self._drive(waiting.which_ended(left))
                else:
                    ended = [task["id"] for task in event.data["tasks"] if waiting.has_ended(task["status"])]
                for task_id in ended:
                    if task_id in left:
                        del left[task_id]
                        yield await self.get(task_id)
                if not left:
                    return
        task_id = next(iter(left))
        raise waiting.overdue(task_id, (await self.get(task_id))["status"], timeout_s, len(left))

    async def log(self, task_id: str, stream: str = "stdout", offset: int = 0, *, attempt: int | None = None) -> Chunk:
        return await self._send(calls.log(task_id, stream, offset, attempt))

    async def logs(
        self,
        task_id: str,
        stream: str = "stdout",
        *,
        offset: int = 0,
        attempt: int | None = None,
        follow: bool = False,
    ) -> AsyncIterator[bytes]:
        if follow:
            subscription = events.log_of(task_id, stream, offset, attempt)
            async with aclosing(self._events(subscription, float("inf"))) as feed:
                async for event in feed:
                    if event.kind == "log":
                        yield events.log_bytes(event)
                    elif event.kind == "end":
                        return
            return
        while (chunk := await self.log(task_id, stream, offset, attempt=attempt)).data:
            attempt = chunk.attempt
            offset = chunk.next
            yield chunk.data

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────

    async def stats(self) -> Stats:
        return await self._send(calls.stats())

    async def nodes(self) -> Nodes:
        return await self._send(calls.nodes())

    async def drain(self, incarnation: str) -> dict[str, Any]:
        return await self._send(calls.drain(incarnation))

    async def health(self) -> Health:
        return await self._send(calls.health())

    async def pause(self) -> None:
        await self._send(calls.set_paused(True))

    async def resume(self) -> None:
        await self._send(calls.set_paused(False))

    async def create_token(self, name: str, scope: str) -> NewToken:
        return await self._send(calls.create_token(name, scope))

    async def tokens(self) -> Tokens:
        return await self._send(calls.tokens())

    async def revoke_token(self, name: str) -> Token:
        return await self._send(calls.revoke_token(name))

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            outcome: Response | Exception
            try:
                outcome = _response(await self._http.send(self._request(call.request)))
            except httpx.TransportError as error:
                outcome = _failure(error)
            if tried == self._retries or not calls.is_worth_repeating(call.request, outcome):
                return calls.answer(call, outcome, self.url)
            await asyncio.sleep(calls.pause_s(tried, outcome))
            tried += 1

    async def _drive(self, plan: waiting.Plan[T]) -> T:
        try:
            call = next(plan)
            while True:
                call = plan.send(await self._send(call))
        except StopIteration as end:
            value: T = end.value
            return value

    async def _events(self, subscription: Subscription, deadline: float) -> AsyncGenerator[Event, None]:
        """See `Client`; each line is awaited for as long as `deadline` allows."""
        tried = 0
        while True:
            request = subscription.request()
            outcome: Response | Exception
            try:
                answer = await self._http.send(self._request(request), stream=True)
                try:
                    outcome = Response(answer.status_code, answer.headers)
                    if answer.status_code != 200:
                        outcome = Response(answer.status_code, answer.headers, await answer.aread())
                    async for line in _until(deadline, answer.aiter_lines(), answer.status_code == 200):
                        event = subscription.feed(line.encode())
                        if event is not None:
                            tried = 0
                            yield event
                finally:
                    await answer.aclose()
            except httpx.TransportError as error:
                outcome = _failure(error)
            if time.monotonic() >= deadline:
                return
            ended_well = isinstance(outcome, Response) and outcome.status == 200
            if tried == self._retries or not (ended_well or calls.is_worth_repeating(request, outcome)):
                raise calls.refusal(outcome, self.url)
            await asyncio.sleep(calls.pause_s(tried, outcome))
            tried += 1

    def _request(self, request: Request) -> httpx.Request:
        return self._http.build_request(
            request.method, request.path, params=request.params, headers=request.headers, content=request.content
        )


async def _until(deadline: float, lines: AsyncIterator[str], are_there: bool) -> AsyncIterator[str]:
    while are_there:
        left_s = deadline - time.monotonic()
        try:
            yield await asyncio.wait_for(anext(lines), None if left_s == float("inf") else max(0.0, left_s))
        except (StopAsyncIteration, asyncio.TimeoutError):
            return


def _response(answer: httpx.Response) -> Response:
    return Response(answer.status_code, answer.headers, answer.content)


def _failure(error: httpx.TransportError) -> Exception:
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return (Lost if sent else NotSent)(str(error) or type(error).__name__)


def _options(address: Address, timeout_s: float) -> dict[str, Any]:
    headers = {} if address.token is None else {"Authorization": f"Bearer {address.token}"}
    return {
        "base_url": address.url,
        "headers": headers,
        "timeout": timeout_s,
        # A proxy from the environment cannot reach this machine's own loopback.
        "trust_env": not is_loopback(urlsplit(address.url).hostname),
    }
