"""Request bodies, bounded while they stream."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect


async def chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives; 413 before more than `limit` bytes are read, or sooner if the client says so itself."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise _too_large(limit)
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:
                raise _too_large(limit)
            yield chunk
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None  # nobody is left to read this


async def read(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes."""
    received = [chunk async for chunk in chunks(request, limit) if chunk]
    return received[0] if len(received) == 1 else b"".join(received)


def _too_large(limit: int) -> HTTPException:
    # The rest of the body is not read, so the connection cannot go on.
    return HTTPException(413, f"the body is longer than {limit} bytes", headers={"Connection": "close"})
