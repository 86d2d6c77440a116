"""Every error as `application/problem+json` (RFC 9457), and nothing of the inside with it.

`errors` names what is wrong field by field; `index` is there for a batch.  The type of a problem
follows from its status, so a client needs to look at one of the two only.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, cast, get_args, get_origin

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from pysched.errors import (
    ConflictError,
    DatabaseReadOnly,
    DatabaseUnreachable,
    InputError,
    NotFoundError,
    Problem,
    PyschedError,
    StoreError,
    TaskError,
)
from pysched.task import problems as field_problems

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1  # what a 503 tells the client to wait: a full queue drains in less, a database restarts in about that

_KINDS = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    413: "too-large",
    415: "media-type",
    421: "foreign-host",
    422: "invalid",
    429: "too-many-tries",
    431: "headers-too-large",
    503: "unavailable",
}

_log = structlog.get_logger("api")


class FieldError(BaseModel):
    """One thing wrong with a request."""

    field: Annotated[str, Field(description="dotted path, e.g. env.PATH; empty for the document as a whole")]
    message: Annotated[str, Field(description="what is wrong; what would be right")]
    index: Annotated[int | None, Field(description="position of the task in a batch, from 0")] = None


class ProblemDocument(BaseModel):
    """An error (RFC 9457)."""

    type: Annotated[str, Field(description="urn:pysched:problem:KIND, one kind a status")]
    title: str
    status: int
    detail: Annotated[str, Field(description="one line for people")]
    errors: Annotated[list[FieldError], Field(description="what is wrong, field by field")] = []
    id: Annotated[str | None, Field(description="of the task, with 409")] = None


def problem(
    status: int,
    detail: str,
    *,
    errors: Iterable[Mapping[str, object]] = (),
    headers: Mapping[str, str] | None = None,
    **extra: object,
) -> Response:
    """The answer for one error."""
    document: dict[str, object] = {
        "type": f"urn:pysched:problem:{_KINDS.get(status, 'error')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": list(errors),
        **extra,
    }
    if status == 503:
        headers = {"Retry-After": str(RETRY_AFTER_S), **(headers or {})}
    return Response(json.dumps(document), status, headers, MEDIA_TYPE)


def of_error(error: PyschedError) -> Response:
    """The answer for an error of pysched's own tree."""
    match error:
        case TaskError():
            return problem(422, str(error), errors=[_entry(each, error.index) for each in error.problems])
        case ConflictError():
            text = str(error).removeprefix("id: ")
            return problem(409, text, errors=[_entry(Problem("id", text))], id=error.task_id)
        case NotFoundError():
            return problem(404, str(error))
        case InputError():
            return problem(400, str(error))
        case DatabaseUnreachable():
            # The store's own words may name hosts and users: they are for the log.
            _log.warning("database unreachable", error=str(error))
            return problem(503, "the database does not answer; nothing was changed by this server, try again")
        case DatabaseReadOnly():
            _log.warning("database read-only", error=str(error))
            return problem(503, "the database takes no writes now; nothing was changed, try again")
        case StoreError():
            _log.error("store failed", error=str(error))
            return problem(503, "the store could not do it; try again, and see the server's log")
        case _:
            _log.error("request failed", error=str(error))
            return internal()


def internal() -> Response:
    return problem(500, "the server made a mistake; its log says more")


def install(app: FastAPI) -> None:
    app.add_exception_handler(PyschedError, lambda _request, error: of_error(cast("PyschedError", error)))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, lambda _request, _error: internal())


async def only_known_parameters(request: Request) -> None:
    """A dependency of every route: a mistyped filter must not silently mean "no filter", nor a second value be lost.

    Not blocking, so no plain function, for which FastAPI would use a thread.
    """
    if not request.scope["query_string"]:
        return
    known = _query_parameters(request.scope["route"].dependant)
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            right = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"
            raise TaskError(Problem(name, f"is not a parameter of {request.url.path}; {right}"))
        if count > 1 and not known[name]:
            raise TaskError(Problem(name, f"is given {count} times; give it once"))


def _query_parameters(dependant: Any) -> dict[str, bool]:
    """The query parameters of a route, also those of its dependencies, and whether each may be repeated."""
    found = {each.alias: _is_list(each.field_info.annotation) for each in dependant.query_params}
    for part in dependant.dependencies:
        found |= _query_parameters(part)
    return found


def _is_list(annotation: Any) -> bool:
    """Whether it is a list, perhaps among others."""
    return get_origin(annotation) is list or any(_is_list(part) for part in get_args(annotation))


def _entry(each: Problem, index: int | None = None) -> dict[str, object]:
    entry: dict[str, object] = {"field": each.field, "message": each.message}
    return entry if index is None else {**entry, "index": index}


def _invalid(_request: Request, error: Exception) -> Response:
    """Parameters that FastAPI found wrong, by their names; bodies never come here."""
    details = cast("RequestValidationError", error).errors()
    found = field_problems([{**detail, "loc": detail["loc"][1:2]} for detail in details])
    return problem(422, " | ".join(map(str, found)), errors=[_entry(each) for each in found])


def _refused(request: Request, error: Exception) -> Response:
    """Statuses raised by routes here, and those that routing itself raises."""
    refusal = cast("HTTPException", error)
    headers: Mapping[str, str] = refusal.headers or {}
    detail: Any = refusal.detail
    if detail == HTTPStatus(refusal.status_code).phrase:  # nobody chose these words
        if refusal.status_code == 404:
            detail = f"there is nothing at {request.url.path}; /openapi.json lists what is"
        elif refusal.status_code == 405:
            detail = (
                f"{request.method} is not allowed on {request.url.path}; use {Headers(headers).get('allow', 'another')}"
            )
    return problem(refusal.status_code, str(detail), headers=headers)
