"""/nodes: which run, and letting one run dry."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Path, Response

from pysched.api.context import Shared
from pysched.api.schema import DrainedNode, NodeList, json_response, refusals
from pysched.api.scopes import Scope, needs

router = APIRouter(prefix="/nodes", tags=["nodes"])


@router.get("", summary="List nodes", response_model=NodeList, responses=refusals(), dependencies=[needs(Scope.READ)])
def nodes(shared: Shared) -> Response:
    """The running nodes."""
    return json_response({"nodes": shared.store.nodes()})


@router.post(
    "/{id}/drain",
    summary="Let a node start nothing more",
    response_model=DrainedNode,
    responses=refusals(404, 422),
    dependencies=[needs(Scope.ADMIN)],
)
def drain(
    shared: Shared, incarnation: Annotated[uuid.UUID, Path(alias="id", description="the node's incarnation")]
) -> Response:
    """Its running tasks go on, and it takes nothing more until it is started again."""
    shared.store.drain(incarnation)
    return json_response({"incarnation": str(incarnation), "draining": True})
