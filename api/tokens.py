"""/tokens: who else may speak to this server, and how far."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError

from pysched.api import bodies
from pysched.api.context import Shared
from pysched.api.keyring import digest, new_token
from pysched.api.schema import NAME_PATTERN, NewToken, Token, TokenList, TokenRequest, json_response, one, refusals
from pysched.api.scopes import Scope, needs
from pysched.errors import Problem, TaskError

BODY_BYTES = 4096

router = APIRouter(prefix="/tokens", tags=["tokens"], dependencies=[needs(Scope.ADMIN)])


@router.post(
    "",
    status_code=201,
    summary="Make a token",
    response_model=NewToken,
    responses=refusals(400, 413, 415, 422),
    openapi_extra={"requestBody": one("TokenRequest")},
)
async def create(request: Request, shared: Shared) -> Response:
    """The token is shown this once: the store keeps its digest alone."""
    wanted = _parse(await bodies.read(request, BODY_BYTES))
    token = new_token()
    made = await asyncio.to_thread(
        shared.store.create_token, wanted.name, scope=wanted.scope.value, digest=digest(token.encode())
    )
    shared.keyring.forget()
    return json_response({**made, "token": token}, status=201)


@router.get("", summary="List tokens", response_model=TokenList, responses=refusals())
def tokens(shared: Shared) -> Response:
    """All but the administrator's, which stands in the server's home."""
    return json_response({"tokens": [row for row, _ in shared.store.tokens()]})


@router.delete("/{name}", summary="Revoke a token", response_model=Token, responses=refusals(404, 422))
async def revoke(shared: Shared, name: Annotated[str, Path(pattern=NAME_PATTERN)]) -> Response:
    """Refused from now on by this server, within five seconds by others on the same database."""
    revoked = await asyncio.to_thread(shared.store.revoke_token, name)
    shared.keyring.forget()
    return json_response(revoked)


def _parse(body: bytes) -> TokenRequest:
    try:
        return TokenRequest.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise TaskError(*(Problem(".".join(map(str, each["loc"])), each["msg"]) for each in found)) from None
