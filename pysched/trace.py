"""W3C trace context: where a task stands in a trace that somebody else began (https://www.w3.org/TR/trace-context).

It is handed to the job as it came, so that the job's own spans become children of the caller's.  It is no content of
the task: whoever sends the same task again, in another span, means the same task.
"""

from __future__ import annotations

import re

TRACEPARENT = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
TRACESTATE = r"^[\x20-\x7e]{1,512}$"
FIELDS = ("traceparent", "tracestate")

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_STATE = re.compile(TRACESTATE.replace("$", r"\Z"))


def is_traceparent(text: str) -> bool:
    """Whether it names a trace and a span in it."""
    return _PARENT.fullmatch(text) is not None


def fields(traceparent: str | None, tracestate: str | None) -> dict[str, str]:
    """The fields of a task for a context as headers or variables carry it; none for what is no context."""
    if traceparent is None or not is_traceparent(traceparent):
        return {}
    found = {"traceparent": traceparent}
    if tracestate and _STATE.match(tracestate):
        found["tracestate"] = tracestate
    return found
