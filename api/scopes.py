"""What a token may do: each route says which scope it needs."""

from __future__ import annotations

from enum import Enum
from typing import Any

from fastapi import Request, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security import SecurityScopes
from fastapi.security.base import SecurityBase
from starlette.exceptions import HTTPException


class Scope(str, Enum):
    """Each includes those before it."""

    READ = "read"  # look
    SUBMIT = "submit"  # submit tasks, cancel and retry them: run programs, that is
    ADMIN = "admin"  # steer nodes and the queue, make and revoke tokens

    def includes(self, other: Scope) -> bool:
        return _ORDER[self] >= _ORDER[other]


_ORDER = {scope: place for place, scope in enumerate(Scope)}


class _Token(SecurityBase):
    """A dependency that lets those pass whose token has the scope; what it asks for stands in the document."""

    def __init__(self) -> None:
        self.model = HTTPBearer(description="stands in HOME/token of the server; or one made with POST /tokens")
        self.scheme_name = "token"

    async def __call__(self, request: Request, needed: SecurityScopes) -> None:
        for each in needed.scopes:
            check(request.state.scope, Scope(each))


_token = _Token()


def needs(scope: Scope) -> Any:
    """For a route's `dependencies`, or a router's."""
    return Security(_token, scopes=[scope.value])


def check(held: Scope | None, needed: Scope) -> None:
    """Raise 403 unless what is held includes what is needed."""
    if held is None or not held.includes(needed):
        own = "none" if held is None else held.value
        raise HTTPException(403, f"this needs a token of scope {needed.value}; yours is of scope {own}")
