"""Bugs that other schedulers had, put back on purpose, to see that the driver catches them.

They never touch what is shipped: `World` starts its services with `spoiled/` on PYTHONPATH, whose `sitecustomize` calls
`install` in each of their processes before anything of pysched runs; there queries are loaded from altered text and a
method is replaced.  An alteration that finds nothing to alter is an error, so a bug cannot silently stay out.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.chaos import processes

_HERE = Path(__file__).parent
_FENCE = (rb"WHERE t\.id = e\.id AND t\.attempts = e\.attempt AND t\.token = e\.token[^\n]*", b"WHERE t.id = e.id")
_HOLDER = (rb"ELSE t\.holder END", b"ELSE coalesce(t.holder, t.node) END")  # unfenced, a write may find none

# Who is dead is judged by time alone, as if it were wise to take a second for an hour.
_OVERDUE = (
    rb"NOT EXISTS \(\s*SELECT FROM pysched\.nodes WHERE incarnation = holder AND ended_at IS NULL\)",
    b"state = 'running' AND attempt_started_at < clock_timestamp() - interval '1 second'",
)
_UPSERT = (
    rb"FROM changed WHERE NOT void\n",
    b"""FROM changed WHERE NOT void ON CONFLICT (task_id, attempt) DO UPDATE SET
    state = excluded.state, reason = excluded.reason, exit_code = excluded.exit_code
""",
)


def environ(bug: str) -> dict[str, str]:
    """What lets a process have `bug`."""
    return {"CHAOS_BUG": bug, "PYTHONPATH": os.pathsep.join([str(_HERE / "spoiled"), str(_HERE.parent.parent)])}


def install(bug: str) -> None:
    """Into this process, which has imported nothing of pysched yet."""
    _BUGS[bug]()


def _river_1302() -> None:
    """River #1302: the rescuer looks for jobs that have run too long, and writes its verdict on each later, whatever
    has happened meanwhile: a job that has completed is overwritten, and runs again."""
    _alter(
        {
            "standing": lambda text: _replace(text, _OVERDUE),
            "abandoned": lambda text: _replace(text, _OVERDUE),
            "finish": lambda text: _replace(text, _FENCE, _HOLDER, _UPSERT),
        }
    )
    _rescue_slowly()


def _solid_queue_589() -> None:
    """Solid Queue #589: a process that is only slow is taken for dead, its jobs are recorded as failed, and recorded as
    finished when it finishes them.  (`SCHEMA_589` takes away the key that would not have it.)"""
    _alter(
        {
            "standing": lambda text: _replace(text, _OVERDUE),
            "abandoned": lambda text: _replace(text, _OVERDUE),
            "finish": lambda text: _replace(text, _FENCE, _HOLDER),
        }
    )
    _rescue_slowly()


SCHEMA_589 = "ALTER TABLE pysched.attempts DROP CONSTRAINT attempts_pkey"


def _procrastinate_1518() -> None:
    """Procrastinate #1518: a new worker gets the id of one that died, whose jobs then look alive for ever."""
    from pysched.incarnation import Incarnation

    original = Incarnation.__init__

    def init(life: Incarnation, settings: Any, *rest: Any, **named: Any) -> None:
        original(life, settings, *rest, **named)
        life._id = uuid.uuid5(uuid.NAMESPACE_URL, str(settings.home))

    Incarnation.__init__ = init  # type: ignore[method-assign, assignment]


def _rescue_slowly() -> None:
    """The others do not end what a rescued job has left, and a job ends between their look and their verdict."""
    from pysched.engine import recovery

    if not callable(recovery.end_processes):
        raise LookupError("there is no end_processes to replace; mend tests/chaos/bugs.py")

    def look_away(abandoned: Sequence[Any]) -> int:
        deadline = time.monotonic() + 6.0
        jobs = [item.pid for item in abandoned if item.pid is not None]
        while jobs and time.monotonic() < deadline and all(processes.state(pid) not in {"", "Z"} for pid in jobs):
            time.sleep(0.01)
        time.sleep(0.5 if jobs else 0.0)  # for its own node to record that
        return 0

    recovery.end_processes = look_away


def _alter(changes: Mapping[str, Callable[[bytes], bytes]]) -> None:
    """Let the queries of these names be loaded with other text."""
    from pysched.store import sql

    load = sql.load

    def altered(file: str) -> SimpleNamespace:
        queries = load(file)
        if file == "plain":  # keeps its fence: the verdicts that overrule others are sweepers', and go the long way
            return queries
        for name, change in changes.items():
            if hasattr(queries, name):
                setattr(queries, name, change(getattr(queries, name)))
        return queries

    sql.load = altered


def _replace(text: bytes, *changes: tuple[bytes, bytes]) -> bytes:
    for pattern, by in changes:
        text, count = re.subn(pattern, by, text)
        if count == 0:
            raise LookupError(f"the query has no {pattern!r}; mend tests/chaos/bugs.py")
    return text


_BUGS: dict[str, Callable[[], None]] = {
    "river-1302": _river_1302,
    "solid-queue-589": _solid_queue_589,
    "procrastinate-1518": _procrastinate_1518,
}
