"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pysched.client import calls, events, waiting
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
from pysched.client.wire import Connections, Lost, NotSent, Response, Transport
from pysched.discovery import discover

if TYPE_CHECKING:
    from typing_extensions import Unpack

TIMEOUT_S = 30.0  # of one exchange; a batch may take this long between two bytes
RETRIES = 4  # further tries after the first

T = TypeVar("T")


class Client:
    """Speaks to the control plane; a context manager, safe to share between threads.

    Every method raises `ServerUnreachable` if nobody answers, `Unauthorized` for a missing or wrong
    token, `NotFoundError`, `TaskError`, `ConflictError` as the server says, `ServerError` for the rest.
    Lost connections, timeouts and 503 are tried again `retries` times, only where that is safe: a task gets
    its id here, so that an answer that was lost never submits it twice.
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
        transport: Transport | None = None,
    ) -> None:
        address = discover(url=url, token=token, home=home)
        self.url = address.url
        self._retries = retries
        self._transport = transport or Connections(address, timeout_s)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, task: TaskInput) -> Accepted:
        """Submit one task; `{id, status}` once it is durable."""
        return self._send(calls.submit(task))

    def submit_many(self, tasks: Iterable[TaskInput]) -> Acceptances:
        """Submit up to 100,000 tasks, all or none; `{id, status}` of each, in order."""
        return self._send(calls.submit_many(tasks))

    def get(self, task_id: str) -> TaskDetail:
        """A task with all its attempts."""
        return self._send(calls.get(task_id))

    def explain(self, task_id: str) -> Explanation:
        """Why a task does not run yet."""
        return self._send(calls.explain(task_id))

    def list(self, *, limit: int = 100, before: int | None = None, **filters: Unpack[Filters]) -> Page:
        """A page of tasks, newest first.  It may be shorter than `limit` though more follow: see `Page.next`."""
        return self._send(calls.page(filters, limit, before))

    def tasks(self, **filters: Unpack[Filters]) -> Iterator[TaskSummary]:
        """Every task that fits, newest first, fetched page by page."""
        before: int | None = None
        while True:
            page = self.list(limit=1000, before=before, **filters)
            yield from page.tasks
            before = page.next
            if before is None:
                return

    def cancel(self, task_id: str) -> Accepted:
        """Cancel a task; a running one is still `running` until its processes are gone."""
        return self._send(calls.cancel(task_id))

    def retry(self, task_id: str) -> Accepted:
        """Run an ended task again."""
        return self._send(calls.retry(task_id))

    def cancel_all(self, **filters: Unpack[Filters]) -> dict[str, Any]:
        """Cancel every task that fits; `{cancelled, requested, unchanged}`: at once, running still, ended before."""
        return self._drive(waiting.bulk(calls.cancel_all, filters))

    def retry_all(self, **filters: Unpack[Filters]) -> dict[str, Any]:
        """Run every failed or cancelled task that fits again; `{retried, refused, errors}`."""
        return self._drive(waiting.bulk(calls.retry_all, filters))

    # ── until something happens ──────────────────────────────────────────────────────────────────────────────

    def wait(self, ids: Iterable[str], timeout_s: float | None = None) -> dict[str, TaskDetail]:
        """The tasks by id, once all have ended; `TimeoutError` if that takes longer than `timeout_s`."""
        return self._drive(waiting.wait(ids, timeout_s))

    def as_completed(self, ids: Iterable[str], timeout_s: float | None = None) -> Iterator[TaskDetail]:
        """The tasks in the order in which they end; `TimeoutError` if that takes longer than `timeout_s`."""
        left = dict.fromkeys(ids)
        deadline = waiting.deadline_of(timeout_s)
        stream = self._events(events.ends_of_tasks(), deadline) if left else iter(())
        for event in stream:
            if event.kind in {"ready", "reset"}:  # what ended until now, or was missed
                ended = self._drive(waiting.which_ended(left))
            else:
                ended = [task["id"] for task in event.data["tasks"] if waiting.has_ended(task["status"])]
            for task_id in ended:
                if task_id in left:
                    del left[task_id]
                    yield self.get(task_id)
            if not left:
                return
        if left:
            task_id = next(iter(left))
            raise waiting.overdue(task_id, self.get(task_id)["status"], timeout_s, len(left))

    def log(self, task_id: str, stream: str = "stdout", offset: int = 0, *, attempt: int | None = None) -> Chunk:
        """Bytes of a log from `offset`, at most 1 MiB; the newest attempt's by default."""
        return self._send(calls.log(task_id, stream, offset, attempt))

    def logs(
        self,
        task_id: str,
        stream: str = "stdout",
        *,
        offset: int = 0,
        attempt: int | None = None,
        follow: bool = False,
    ) -> Iterator[bytes]:
        """A log in pieces: what there is, or with `follow` what comes until the task has ended, over all attempts."""
        if follow:
            for event in self._events(events.log_of(task_id, stream, offset, attempt), float("inf")):
                if event.kind == "log":
                    yield events.log_bytes(event)
                elif event.kind == "end":
                    return
            return
        while (chunk := self.log(task_id, stream, offset, attempt=attempt)).data:
            attempt = chunk.attempt  # should the next one begin meanwhile, its bytes do not belong behind these
            offset = chunk.next
            yield chunk.data

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> Stats:
        """Tasks by state."""
        return self._send(calls.stats())

    def nodes(self) -> Nodes:
        """The running nodes."""
        return self._send(calls.nodes())

    def drain(self, incarnation: str) -> dict[str, Any]:
        """Let a node take no further task; what it runs ends."""
        return self._send(calls.drain(incarnation))

    def health(self) -> Health:
        """What /health says; no error if that is "unavailable"."""
        return self._send(calls.health())

    def pause(self) -> None:
        """Start no further task, on any node."""
        self._send(calls.set_paused(True))

    def resume(self) -> None:
        """Start tasks again."""
        self._send(calls.set_paused(False))

    def create_token(self, name: str, scope: str) -> NewToken:
        """Make a token of scope `read`, `submit` or `admin`; what it is, is told this once."""
        return self._send(calls.create_token(name, scope))

    def tokens(self) -> Tokens:
        """All tokens but the administrator's own, without their secrets."""
        return self._send(calls.tokens())

    def revoke_token(self, name: str) -> Token:
        """Let a token open nothing any more."""
        return self._send(calls.revoke_token(name))

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            outcome: Response | Exception
            try:
                outcome = self._transport.exchange(call.request)
            except (NotSent, Lost) as error:
                outcome = error
            if tried == self._retries or not calls.is_worth_repeating(call.request, outcome):
                return calls.answer(call, outcome, self.url)
            time.sleep(calls.pause_s(tried, outcome))
            tried += 1

    def _drive(self, plan: waiting.Plan[T]) -> T:
        try:
            call = next(plan)
            while True:
                call = plan.send(self._send(call))
        except StopIteration as end:
            value: T = end.value
            return value

    def _events(self, subscription: Subscription, deadline: float) -> Iterator[Event]:
        """What comes until `deadline`, over as many connections as that takes; gives up after `retries` without any."""
        tried = 0
        while True:
            request = subscription.request()
            outcome: Response | Exception
            try:
                with self._transport.stream(request, deadline) as (outcome, lines):
                    for line in lines:
                        event = subscription.feed(line)
                        if event is not None:
                            tried = 0
                            yield event
            except (NotSent, Lost) as error:
                outcome = error
            if time.monotonic() >= deadline:
                return
            ended_well = isinstance(outcome, Response) and outcome.status == 200  # the server is stopping
            if tried == self._retries or not (ended_well or calls.is_worth_repeating(request, outcome)):
                raise calls.refusal(outcome, self.url)
            time.sleep(calls.pause_s(tried, outcome))
            tried += 1
