"""Tasks as the store gives them: many are alike but for their ids, and those are read once."""

from __future__ import annotations

from pysched.task import Task, parse_task

_KEPT = 64
_KEPT_CHARS = 4_096  # a longer spec is seldom that of another task, too


class Specs:
    """One thread at a time."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}

    def read(self, spec: str) -> Task:
        """What `Task.from_spec` gives, without the id, and mostly the same object for the same text."""
        task = self._tasks.get(spec)
        if task is None:
            task = parse_task(spec)
            if len(spec) <= _KEPT_CHARS:
                if len(self._tasks) == _KEPT:
                    self._tasks.clear()
                self._tasks[spec] = task
        return task
