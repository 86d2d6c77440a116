"""Server-sent events: their text, and the answer that carries them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

MEDIA_TYPE = "text/event-stream"
KEEPALIVE_S = 15.0
KEEPALIVE = b":\n\n"  # a comment, which clients pass over and proxies take for life


def event(name: str, data: object, *, id: str | None = None) -> bytes:
    """One event; JSON has no line breaks, so the data is one line."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})


def described(description: str) -> dict[str, Any]:
    """For a route's `responses`."""
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
