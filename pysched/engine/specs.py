"""Tasks as the store gives them: many are alike but for their ids and their `params`, and those are read once.

A spec is canonical JSON (`task.dump`), so its `params` can be cut out of the text.  What is left is looked up, or read,
as a task without any; the params stay text, which is what a job gets.
"""

from __future__ import annotations

import json

from pysched.task import Task, parse_task

_KEPT = 64
_KEPT_CHARS = 4_096  # a longer spec is seldom that of another task, too
_NONE = "{}"
# Outside of texts, in which quotes are escaped, this names the field before it can name anything else: fields are in
# order, and none of those before it holds objects in objects.
_BEGIN = '"params":{'
_DECODER = json.JSONDecoder()


class Specs:
    """One thread at a time."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def read(self, spec: str) -> tuple[Task, str]:
        """What `Task.from_spec` gives, without id and params, and mostly the same object for the same text; and the
        params as JSON."""
        spec, params = _cut(spec)
        task = self._tasks.get(spec)
        if task is None:
            task = parse_task(spec)
            if len(spec) <= _KEPT_CHARS:
                if len(self._tasks) == _KEPT:
                    self._tasks.clear()
                self._tasks[spec] = task
        return task, params


def _cut(spec: str) -> tuple[str, str]:
    """A canonical spec without its params, and those; whatever is no JSON is for `parse_task` to refuse."""
    begin = spec.find(_BEGIN)
    if begin < 1:
        return spec, _NONE
    try:
        _, end = _DECODER.raw_decode(spec, begin + len(_BEGIN) - 1)
    except (ValueError, RecursionError):
        return spec, _NONE
    params = spec[begin + len(_BEGIN) - 1 : end]
    if spec[begin - 1] == ",":
        return spec[: begin - 1] + spec[end:], params
    return spec[:begin] + spec[end:].removeprefix(","), params
