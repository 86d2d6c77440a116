"""The HTTP client.

Each request is a `_Call`: what to send, and how to read the answer.  Those, and the decisions about errors and
repetition, are pure; `Client` alone does I/O and waits.

Nothing of the server is imported here, nor pydantic: client commands have to start fast.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast
from urllib.parse import quote, urlsplit

from pysched.discovery import Address, discover, is_loopback
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
from pysched.model import State, new_id

if TYPE_CHECKING:
    import httpx2 as httpx
else:
    try:
        import httpx2 as httpx
    except ImportError:
        import httpx

TIMEOUT_S = 30.0  # of one exchange; a batch may take this long between two bytes
RETRIES = 4  # further tries after the first …
BACKOFF_S = 0.1  # … the first after at most this long, then twice, full jitter
RETRY_AFTER_MAX_S = 5.0  # what a server may ask for between two tries
PAUSE_MIN_S, PAUSE_MAX_S = 0.01, 0.5  # between two looks at a task that `wait` waits for

JsonObject = dict[str, Any]
JsonObjects = list[JsonObject]
Results = dict[str, JsonObject]
T = TypeVar("T")


class TaskLike(Protocol):
    """A `pysched.Task`, without importing pydantic for it."""

    def model_dump_json(self, *, exclude_defaults: bool = ...) -> str: ...


TaskInput = Mapping[str, object] | TaskLike


# ── what to send, and how to read the answer ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    media_type: str = "application/json"
    repeatable: bool = True  # a second arrival changes nothing, so an answer that got lost may be asked for again

    def headers(self) -> dict[str, str]:
        return {} if self.content is None else {"Content-Type": self.media_type}


def _object(response: httpx.Response) -> JsonObject:
    return cast("JsonObject", response.json())


def _tasks(response: httpx.Response) -> JsonObjects:
    return cast("JsonObjects", response.json()["tasks"])


def _nodes(response: httpx.Response) -> JsonObjects:
    return cast("JsonObjects", response.json()["nodes"])


def _page(response: httpx.Response) -> tuple[JsonObjects, int | None]:
    page = response.json()
    return page["tasks"], page["next"]


def _chunk(response: httpx.Response) -> tuple[bytes, int]:
    return response.content, int(response.headers["x-next-offset"])


def _with_id(task: TaskInput) -> JsonObject:
    """The task as a mapping that has an id: the server knows a task sent twice by it."""
    if isinstance(task, Mapping):
        given: JsonObject = dict(task)
    else:
        given = json.loads(task.model_dump_json(exclude_defaults=True))
    if given.get("id") is None:
        given["id"] = new_id()
    return given


def _encoded(task: JsonObject) -> bytes:
    try:
        return json.dumps(task, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise TaskError(Problem("", f"is no JSON: {error}")) from None


def _submit(task: TaskInput) -> _Call[JsonObject]:
    return _Call("POST", "/submit", _object, content=_encoded(_with_id(task)))


def _submit_many(tasks: Iterable[TaskInput]) -> _Call[JsonObjects]:
    lines = b"\n".join(_encoded(_with_id(task)) for task in tasks)
    return _Call("POST", "/submit/batch", _tasks, content=lines, media_type="application/x-ndjson")


def _task_path(task_id: str, what: str = "") -> str:
    return f"/tasks/{quote(task_id, safe='')}{what}"


def _get(task_id: str) -> _Call[JsonObject]:
    return _Call("GET", _task_path(task_id), _object)


def _list(
    status: str | None,
    priority: str | None,
    type: str | None,
    limit: int,
    before: int | None,
) -> _Call[tuple[JsonObjects, int | None]]:
    given = {"status": status, "priority": priority, "type": type, "limit": limit, "before": before}
    return _Call("GET", "/tasks", _page, {name: str(value) for name, value in given.items() if value is not None})


def _logs(task_id: str, stream: str, offset: int, attempt: int | None) -> _Call[tuple[bytes, int]]:
    params = {"stream": stream, "offset": str(offset)} | ({} if attempt is None else {"attempt": str(attempt)})
    return _Call("GET", _task_path(task_id, "/logs"), _chunk, params)


def _cancel(task_id: str) -> _Call[JsonObject]:
    return _Call("POST", _task_path(task_id, "/cancel"), _object)


def _retry(task_id: str) -> _Call[JsonObject]:
    # Not repeatable: between the two arrivals the task may have run and failed, and would run once too often.
    return _Call("POST", _task_path(task_id, "/retry"), _object, repeatable=False)


def _stats() -> _Call[JsonObject]:
    return _Call("GET", "/stats", _object)


def _list_nodes() -> _Call[JsonObjects]:
    return _Call("GET", "/nodes", _nodes)


def _health() -> _Call[JsonObject]:
    return _Call("GET", "/health", _object)


def _set_paused(paused: bool) -> _Call[JsonObject]:
    return _Call("POST", "/queue/pause" if paused else "/queue/resume", _object)


# ── decisions, without waiting ───────────────────────────────────────────────────────────────────────────────


def _pause_s(tried: int, response: httpx.Response | None) -> float:
    """Before the next try: what the server asked for, and a random share of a doubling bound on top."""
    asked = "0" if response is None else response.headers.get("retry-after", "0")
    least = min(float(asked), RETRY_AFTER_MAX_S) if asked.isdecimal() else 0.0
    return least + random.uniform(0, BACKOFF_S * 2**tried)  # noqa: S311 - spreads clients out, guards nothing


def _repeat_after(call: _Call[Any], outcome: httpx.Response | httpx.TransportError) -> bool:
    """Whether to send again: if nothing can have arrived, or if a second arrival changes nothing."""
    if isinstance(outcome, httpx.Response):
        return outcome.status_code == 503 and call.repeatable and not _is_health(call)
    if isinstance(outcome, httpx.LocalProtocolError):
        return False  # this side's fault, the same every time
    return call.repeatable or isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def _is_health(call: _Call[Any]) -> bool:
    """/health says with 503 that the server is unavailable: that is its answer, no failure to answer."""
    return call.path == "/health"


def _read(call: _Call[T], response: httpx.Response, url: str) -> T:
    """The answer's value, or its error raised."""
    if not response.is_success and not (_is_health(call) and response.status_code == 503):
        raise _error(response, url)
    try:
        return call.read(response)
    except (ValueError, KeyError, TypeError):
        raise ServerError(
            f"{url}{call.path} gave an answer that is not pysched's; is the URL right?", status=response.status_code
        ) from None


def _error(response: httpx.Response, url: str) -> Exception:
    """The error of pysched's tree that a problem document (RFC 9457) describes."""
    status = response.status_code
    try:
        document = response.json()
        detail = str(document["detail"])
        entries: JsonObjects = document.get("errors", [])
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
            index = entries[0].get("index")
            return TaskError(*found, index=index)
        case 400:
            return InputError(detail)
        case _:
            return ServerError(detail, status=status)


def _unreachable(url: str, error: Exception) -> ServerUnreachable:
    why = str(error) or type(error).__name__
    return ServerUnreachable(f"no server answers at {url} ({why}); start one with 'scheduler up', or give --url")


def _options(address: Address, timeout_s: float) -> dict[str, Any]:
    headers = {} if address.token is None else {"Authorization": f"Bearer {address.token}"}
    return {
        "base_url": address.url,
        "headers": {"Accept": "application/json, text/plain", **headers},
        "timeout": timeout_s,
        # A proxy from the environment cannot reach this machine's own loopback.
        "trust_env": not is_loopback(urlsplit(address.url).hostname),
    }


# ── the client ───────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """Speaks to the control plane; a context manager, safe to share between threads.

    Every method raises `ServerUnreachable` if nobody answers, `Unauthorized` for a missing or wrong
    token, `NotFoundError`, `TaskError`, `ConflictError` as the server says, `ServerError` for the rest.
    Lost connections, timeouts and 503 are tried again `retries` times, only where that is safe.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        address = discover(url=url, token=token, home=home)
        self.url = address.url
        self._retries = retries
        self._http = httpx.Client(**_options(address, timeout_s), transport=transport)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, task: TaskInput) -> JsonObject:
        """Submit one task; `{id, status}` once it is durable.  An id is made here, so a lost answer costs nothing."""
        return self._send(_submit(task))

    def submit_many(self, tasks: Iterable[TaskInput]) -> JsonObjects:
        """Submit up to 100,000 tasks, all or none; `{id, status}` of each, in order."""
        return self._send(_submit_many(tasks))

    def get(self, task_id: str) -> JsonObject:
        """A task with all its attempts."""
        return self._send(_get(task_id))

    def list(
        self,
        *,
        status: str | None = None,
        priority: str | None = None,
        type: str | None = None,
        limit: int = 100,
        before: int | None = None,
    ) -> tuple[JsonObjects, int | None]:
        """A page of tasks, newest first, and what to give as `before` for the next one (None: there is none)."""
        return self._send(_list(status, priority, type, limit, before))

    def list_all(
        self,
        *,
        status: str | None = None,
        priority: str | None = None,
        type: str | None = None,
    ) -> Iterator[JsonObject]:
        """Every task, newest first, page by page."""
        before: int | None = None
        while True:
            page, before = self.list(status=status, priority=priority, type=type, limit=1000, before=before)
            yield from page
            if before is None:
                return

    def logs(
        self, task_id: str, stream: str = "stdout", offset: int = 0, *, attempt: int | None = None
    ) -> tuple[bytes, int]:
        """Bytes of a log from `offset`, at most 1 MiB, and the offset after them; the newest attempt's by default."""
        return self._send(_logs(task_id, stream, offset, attempt))

    def cancel(self, task_id: str) -> JsonObject:
        """Cancel a task; `{id, status}`.  A running one is still `running` until its processes are gone."""
        return self._send(_cancel(task_id))

    def retry(self, task_id: str) -> JsonObject:
        """Run an ended task again; `{id, status}`."""
        return self._send(_retry(task_id))

    def stats(self) -> JsonObject:
        return self._send(_stats())

    def nodes(self) -> JsonObjects:
        return self._send(_list_nodes())

    def health(self) -> JsonObject:
        """What /health says; no error if that is "unavailable"."""
        return self._send(_health())

    def pause(self) -> None:
        """Start no further task, on any node."""
        self._send(_set_paused(True))

    def resume(self) -> None:
        self._send(_set_paused(False))

    def wait(self, ids: Iterable[str], timeout_s: float | None = None) -> Results:
        """The tasks by id, once all have ended; `TimeoutError` if that takes longer than `timeout_s`."""
        order = [*dict.fromkeys(ids)]
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        results: Results = {}
        # One after the other: by the time the slowest has ended the others answer at once, so this costs one
        # request a task and the polls of whichever is waited for.
        for task_id in order:
            pause_s = PAUSE_MIN_S
            while not State((task := self.get(task_id))["status"]).terminal:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    count = len(order) - len(results)
                    raise TimeoutError(f"{task_id} is {task['status']} after {timeout_s} s ({count} not seen to end)")
                time.sleep(min(pause_s, left_s))
                pause_s = min(pause_s * 1.5, PAUSE_MAX_S)
            results[task_id] = task
        return results

    def _send(self, call: _Call[T]) -> T:
        tried = 0
        while True:
            response: httpx.Response | None = None
            try:
                response = self._http.request(
                    call.method, call.path, params=call.params, content=call.content, headers=call.headers()
                )
            except httpx.TransportError as error:
                if tried == self._retries or not _repeat_after(call, error):
                    raise _unreachable(self.url, error) from None
            else:
                if tried == self._retries or not _repeat_after(call, response):
                    return _read(call, response, self.url)
            time.sleep(_pause_s(tried, response))
            tried += 1
