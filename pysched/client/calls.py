"""What a client asks, as values: what to send, how to read the answer, when to ask again.

Pure: the clients beside this file do the I/O and the waiting.  Nothing of the server is imported here, nor
pydantic: client commands have to start fast.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Generic, Protocol, TypedDict, TypeVar, cast
from urllib.parse import quote

from pysched.client.results import (
    Accepted,
    Explanation,
    Health,
    NewToken,
    Node,
    Stats,
    TaskDetail,
    TaskSummary,
    Token,
)
from pysched.client.wire import NotSent, Request, Response
from pysched.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    Problem,
    ServerError,
    ServerUnreachable,
    TaskError,
    Unauthorized,
)
from pysched.ids import new_id

BACKOFF_S = 0.1  # before the second try at most this long, then twice, full jitter
RETRY_AFTER_MAX_S = 5.0  # what a server may ask for between two tries

T = TypeVar("T")


class TaskLike(Protocol):
    """A `pysched.Task`, without importing pydantic for it."""

    def model_dump_json(self, *, exclude_defaults: bool = ...) -> str: ...


TaskInput = Mapping[str, object] | TaskLike
Param = str | int | bool | datetime | Sequence[str] | None  # None: not given


class Filters(TypedDict, total=False):
    """Which tasks; all that is given must hold.  None is as not given."""

    status: str | Sequence[str] | None  # one of these
    priority: str | Sequence[str] | None  # one of these
    type: str | None
    tag: str | Sequence[str] | None  # all of these
    id: str | None  # begins so
    name: str | None  # begins so
    node: str | None  # that has it, or had it last
    submitted_since: datetime | str | None  # RFC 3339 with an offset
    submitted_until: datetime | str | None
    finished_since: datetime | str | None
    finished_until: datetime | str | None
    text: str | None  # in id, name or content


# ── what to send, and how to read the answer ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request together with what its answer means."""

    request: Request
    read: Callable[[Response], T]


@dataclass(frozen=True, slots=True)
class Page:
    """Some tasks, newest first."""

    tasks: list[TaskSummary]
    next: int | None  # give it as `before` for the page after this one; None on the last


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a log."""

    data: bytes
    next: int  # offset behind it
    attempt: int  # whose output this is; 0 before the first


def _json(response: Response) -> Any:
    return json.loads(response.content)


def _texts(params: Mapping[str, Param]) -> dict[str, str | Sequence[str]]:
    """Parameters as they stand in a query."""
    texts: dict[str, str | Sequence[str]] = {}
    for name, value in params.items():
        match value:
            case None:
                pass
            case bool():
                texts[name] = str(value).lower()
            case datetime():
                texts[name] = value.astimezone(timezone.utc).isoformat()
            case int():
                texts[name] = str(value)
            case _:
                texts[name] = value
    return texts


def _get(path: str, params: Mapping[str, Param] | None = None, *, read: Callable[[Response], T]) -> Call[T]:
    return Call(Request("GET", path, _texts(params or {}), _ACCEPT), read)


def _post(
    path: str,
    content: bytes | None = None,
    media_type: str = "application/json",
    *,
    params: Mapping[str, Param] | None = None,
    repeatable: bool = True,
) -> Call[Any]:
    headers = _ACCEPT if content is None else {**_ACCEPT, "Content-Type": media_type}
    return Call(Request("POST", path, _texts(params or {}), headers, content, repeatable), _json)


_ACCEPT = {"Accept": "application/json, text/plain"}


def with_id(task: TaskInput) -> dict[str, Any]:
    """The task as a mapping that has an id: the server knows a task sent twice by it."""
    if isinstance(task, Mapping):
        given: dict[str, Any] = dict(task)
    else:
        given = json.loads(task.model_dump_json(exclude_defaults=True))
    if given.get("id") is None:
        given["id"] = new_id()
    return given


def _encoded(task: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(task, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TaskError(Problem("", f"is no JSON: {error}")) from None


def submit(task: TaskInput) -> Call[Accepted]:
    return _post("/submit", _encoded(with_id(task)))


def submit_many(tasks: Iterable[TaskInput]) -> Call[list[Accepted]]:
    lines = b"\n".join(_encoded(with_id(task)) for task in tasks)
    request = _post("/submit/batch", lines, "application/x-ndjson").request
    return Call(request, lambda response: cast("list[Accepted]", _json(response)["tasks"]))


def _task_path(task_id: str, what: str = "") -> str:
    return f"/tasks/{quote(task_id, safe='')}{what}"


def get(task_id: str, wait_s: float | None = None) -> Call[TaskDetail]:
    """With `wait_s` it is answered when the task has ended, or after that time as it is."""
    return _get(_task_path(task_id), {"wait": None if wait_s is None else f"{wait_s:.3f}"}, read=_json)


def explain(task_id: str) -> Call[Explanation]:
    return _get(_task_path(task_id, "/explain"), read=_json)


def page(filters: Filters, limit: int, before: int | None) -> Call[Page]:
    def read(response: Response) -> Page:
        document = _json(response)
        return Page(document["tasks"], document["next"])

    return _get("/tasks", {**_given(filters), "limit": limit, "before": before}, read=read)


def _given(filters: Filters) -> Mapping[str, Param]:
    return cast("Mapping[str, Param]", filters)


def log(task_id: str, stream: str, offset: int, attempt: int | None) -> Call[Chunk]:
    def read(response: Response) -> Chunk:
        headers = response.headers
        return Chunk(response.content, int(headers["x-next-offset"]), int(headers.get("x-attempt", "0")))

    return _get(_task_path(task_id, "/logs"), {"stream": stream, "offset": offset, "attempt": attempt}, read=read)


def cancel(task_id: str) -> Call[Accepted]:
    return _post(_task_path(task_id, "/cancel"))


def retry(task_id: str) -> Call[Accepted]:
    # Not repeatable: between the two arrivals the task may have run and failed, and would run once too often.
    return _post(_task_path(task_id, "/retry"), repeatable=False)


def cancel_all(filters: Filters, before: int | None) -> Call[dict[str, Any]]:
    return _post("/tasks/cancel", params=_bulk(filters, before))


def retry_all(filters: Filters, before: int | None) -> Call[dict[str, Any]]:
    return _post("/tasks/retry", params=_bulk(filters, before), repeatable=False)


def _bulk(filters: Filters, before: int | None) -> dict[str, Param]:
    """A filter that holds for every task is spelt out, lest a mistake in it acts on all."""
    given = _given(filters)
    return {**given, "before": before, "all": None if any(value is not None for value in given.values()) else True}


def stats() -> Call[Stats]:
    return _get("/stats", read=_json)


def nodes() -> Call[list[Node]]:
    return _get("/nodes", read=lambda response: cast("list[Node]", _json(response)["nodes"]))


def drain(incarnation: str) -> Call[dict[str, Any]]:
    return _post(f"/nodes/{quote(incarnation, safe='')}/drain")


def create_token(name: str, scope: str) -> Call[NewToken]:
    # Not repeatable: the token in a lost answer is lost with it, and its name is taken.
    return _post("/tokens", _encoded({"name": name, "scope": scope}), repeatable=False)


def tokens() -> Call[list[Token]]:
    return _get("/tokens", read=lambda response: cast("list[Token]", _json(response)["tokens"]))


def revoke_token(name: str) -> Call[Token]:
    return Call(Request("DELETE", f"/tokens/{quote(name, safe='')}", {}, _ACCEPT, repeatable=False), _json)


def health() -> Call[Health]:
    return _get("/health", read=_json)


def set_paused(paused: bool) -> Call[Any]:
    return _post("/queue/pause" if paused else "/queue/resume")


# ── decisions, without waiting ───────────────────────────────────────────────────────────────────────────────


def pause_s(tried: int, outcome: Response | Exception) -> float:
    """Before the next try: what the server asked for, and a random share of a doubling bound on top."""
    asked = outcome.headers.get("retry-after", "0") if isinstance(outcome, Response) else "0"
    least = min(float(asked), RETRY_AFTER_MAX_S) if asked.isdecimal() else 0.0
    return least + random.uniform(0, BACKOFF_S * 2**tried)  # noqa: S311 - spreads clients out, guards nothing


def is_worth_repeating(request: Request, outcome: Response | Exception) -> bool:
    """Whether to send again: if nothing can have arrived, or if a second arrival changes nothing."""
    if isinstance(outcome, Response):
        return outcome.status == 503 and request.repeatable and not _is_health(request)
    return request.repeatable or isinstance(outcome, NotSent)


def _is_health(request: Request) -> bool:
    """/health says with 503 that the server is unavailable: that is its answer, no failure to answer."""
    return request.path == "/health"


def answer(call: Call[T], outcome: Response | Exception, url: str) -> T:
    """The answer's value, or its error raised."""
    fine = isinstance(outcome, Response) and (
        200 <= outcome.status < 300 or (outcome.status == 503 and _is_health(call.request))
    )
    if not isinstance(outcome, Response) or not fine:
        raise refusal(outcome, url)
    try:
        return call.read(outcome)
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            f"{url}{call.request.path} gave an answer that is not pysched's; is the URL right?", status=outcome.status
        ) from None


def refusal(outcome: Response | Exception, url: str) -> Exception:
    """The error for an answer that is none."""
    if not isinstance(outcome, Response):
        why = str(outcome) or type(outcome).__name__
        return ServerUnreachable(f"no server answers at {url} ({why}); start one with 'scheduler up', or give --url")
    if outcome.status == 200:
        return ServerUnreachable(f"{url} ended the stream again and again; is the server stopping?")
    return _error(outcome, url)


def _error(response: Response, url: str) -> Exception:
    """The error of pysched's tree that a problem document (RFC 9457) describes."""
    status = response.status
    try:
        document = _json(response)
        detail = str(document["detail"])
        entries: Sequence[Mapping[str, Any]] = document.get("errors", [])
        found = [Problem(str(each["field"]), str(each["message"])) for each in entries]
    except (ValueError, KeyError, TypeError):
        return ServerError(f"{url} answered {status} without saying why; is that a pysched server?", status=status)
    match status:
        case 401:
            return Unauthorized(
                f"{detail}; pass it as --token or PYSCHED_TOKEN, or name the home folder", status=status
            )
        case 404:
            return NotFoundError(detail)
        case 409 if document.get("id"):
            return ConflictError(document["id"])
        case 422 if found:
            return TaskError(*found, index=entries[0].get("index"))
        case 400:
            return InputError(detail)
        case 403:
            return Unauthorized(detail, status=status)
        case _:
            return ServerError(detail, status=status)
