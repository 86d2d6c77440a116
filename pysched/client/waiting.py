"""What takes more than one request, as generators that yield calls and get their answers: one text for both clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from pysched.client import calls
from pysched.client.calls import Call, Filters
from pysched.client.results import TaskDetail
from pysched.states import State

ASK_S = 20.0  # that one long poll takes: less than a client, or a proxy between, waits for an answer
_PAGE = 1000

R = TypeVar("R")
Plan = Generator[Call[Any], Any, R]


def deadline_of(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s


def has_ended(status: str) -> bool:
    return State(status).terminal


def wait(ids: Iterable[str], timeout_s: float | None) -> Plan[dict[str, TaskDetail]]:
    """One after the other: by the time the slowest has ended, the others answer at once."""
    order = [*dict.fromkeys(ids)]
    deadline = deadline_of(timeout_s)
    ended: dict[str, TaskDetail] = {}
    for task_id in order:
        while True:
            left_s = deadline - time.monotonic()
            task: TaskDetail = yield calls.get(task_id, max(0.0, min(left_s, ASK_S)))
            if has_ended(task["status"]):
                break
            if left_s <= 0:
                raise overdue(task_id, task["status"], timeout_s, len(order) - len(ended))
        ended[task_id] = task
    return ended


def overdue(task_id: str, status: str, timeout_s: float | None, count: int) -> TimeoutError:
    return TimeoutError(f"{task_id} is {status} after {timeout_s} s ({count} not seen to end)")


def which_ended(ids: Iterable[str]) -> Plan[list[str]]:
    """Those of `ids` that have ended by now.

    Few are asked for one by one.  Many are looked for in the list, newest first, as they were most likely submitted
    a moment ago; what does not stand there (a page that is empty and the last) is asked for by itself.
    """
    left = dict.fromkeys(ids)
    ended = []
    before: int | None = None
    while len(left) > _PAGE // 20:
        page: calls.Page = yield calls.page({}, _PAGE, before)
        for task in page.tasks:
            if task["id"] in left:
                del left[task["id"]]
                if has_ended(task["status"]):
                    ended.append(task["id"])
        before = page.next
        if before is None:
            break
    for task_id in left:
        task = yield calls.get(task_id)
        if has_ended(task["status"]):
            ended.append(task_id)
    return ended


def bulk(call: Callable[[Filters, int | None], Call[dict[str, Any]]], filters: Filters) -> Plan[dict[str, Any]]:
    """A bulk call until it has gone through all: counts added up, lists put together."""
    total: dict[str, Any] = {}
    before: int | None = None
    while True:
        answer: dict[str, Any] = yield call(filters, before)
        before = answer.pop("next")
        total = {name: value if name not in total else total[name] + value for name, value in answer.items()}
        if before is None:
            return total
