"""Plain ends as the core gives them; `tests/integration/test_plain_ends.py` holds what becomes of them to the store."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pysched._core import EXITED, STARTED, Event, Pattern, PlainEnds, Program, moment_of, utc_text
from pysched.engine.attempts import Held
from pysched.model import AttemptKey, Claim, Priority
from pysched.task import Task

from .conftest import DEADLINE_S, Run

Start = Callable[..., Run]
NAMES = ("out", "err", "result", "progress")
NODE = "0190a5f2-0000-7000-8000-000000000001"
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=timezone.utc)
_OIDS = {20: ">q", 23: ">i", 1184: ">q"}


def _held(folder: Path, number: int, code: int, *, submitted_at: datetime, name: str | None = None) -> Held:
    """The first attempt of a task that exits with `code`, of every priority in turn."""
    script = f'[ -z "$LEAVE" ] || echo 1 > "$LEAVE"; exit {code}'
    pattern = Pattern(argv=[b"sh", b"-c", script.encode()], candidates=[b"/bin/sh"], env=[], cwd=b"/")
    task_id = f"t{number:02}"
    task = Task(id=task_id, name=name, command=["sh"], max_retries=0)
    claim = Claim(
        key=AttemptKey(task_id, 1, 1000 + number), priority=Priority(number % 3), rank=0, sequence=number, spec="{}",
        failures=0, submitted_at=submitted_at, waited_s=0.0,
    )  # fmt: skip
    return Held(claim, task, Program(pattern, task_id, 1, NODE, f"{folder}/{task_id}.", NAMES), plain=True)


def _no_result(data: bytes) -> None:
    raise AssertionError(data)


def _run(run: Run, held: Mapping[int, Held]) -> tuple[list[Event], PlainEnds]:
    run.core.submit([each.launch(handle) for handle, each in held.items()])
    events: list[Event] = []
    plain = PlainEnds()
    deadline = time.monotonic() + DEADLINE_S
    while len(plain) + sum(event.kind == EXITED for event in events) < len(held):
        assert time.monotonic() < deadline
        more, ends = run.core.poll_ends(1.0, held, _no_result)
        events += more
        plain.take_in(ends)
    return events, plain


def _elements(array: bytes) -> list[bytes | None]:
    """Of an array as PostgreSQL sends it, and receives it."""
    dimensions, _, oid = struct.unpack_from(">iii", array)
    assert oid in {25, *_OIDS}
    if dimensions == 0:
        assert len(array) == 12
        return []
    count, first = struct.unpack_from(">ii", array, 12)
    assert first == 1
    place, found = 20, []
    for _ in range(count):
        (size,) = struct.unpack_from(">i", array, place)
        place += 4
        found.append(None if size < 0 else array[place : place + size])
        place += max(size, 0)
    assert place == len(array)
    return found


def _values(array: bytes) -> list[object]:
    (oid,) = struct.unpack_from(">i", array, 8)
    if oid in _OIDS:
        return [None if each is None else struct.unpack(_OIDS[oid], each)[0] for each in _elements(array)]
    return [None if each is None else each.decode() for each in _elements(array)]


def _postgres_us(moment: datetime) -> int:
    return (moment - _POSTGRES_EPOCH) // timedelta(microseconds=1)


def test_what_is_known_of_plain_ends(start: Start, tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    # Also by clocks of other zones, and from after the start.
    times = [now - timedelta(days=400 * n, microseconds=n) for n in range(20)]
    times += [now.astimezone(timezone(timedelta(hours=-5))), now + timedelta(hours=1)]
    held = {
        50 - n: _held(tmp_path, n, [0, 0, 1, 255][n % 4], submitted_at=each, name="n" * n or None)
        for n, each in enumerate(times)
    }
    events, plain = _run(start(lanes=2), held)
    assert all(event.kind == STARTED for event in events)
    assert sorted(plain.handles()) == sorted(held)
    pairs = sorted(plain.events(), key=lambda pair: pair[1].claim.key.id)
    assert all(held[event.handle] is each for event, each in pairs)

    columns = {name: _values(array) for name, array in plain.columns().items()}
    starts = [moment_of(event.started_ns) for event, _ in pairs]
    ends = [begin + timedelta(microseconds=e.run_ns // 1000) for begin, (e, _) in zip(starts, pairs, strict=True)]
    runs_ms = [
        ((end - begin) // timedelta(microseconds=1) + 500) // 1000 for begin, end in zip(starts, ends, strict=True)
    ]
    codes = [os.waitstatus_to_exitcode(event.status) for event, _ in pairs]
    ids = [each.claim.key.id for _, each in pairs]
    assert columns == {
        "ids": ids,
        "tokens": [each.claim.key.token for _, each in pairs],
        "pids": [event.pid for event, _ in pairs],
        "starts": list(map(_postgres_us, starts)),
        "ends": list(map(_postgres_us, ends)),
        "runs_ms": runs_ms,
        "exit_codes": codes,
        "cpu_ms": [event.cpu_ns // 1_000_000 for event, _ in pairs],
        "max_rss_kb": [event.max_rss_kb for event, _ in pairs],
        "stdouts": [each.program.stdout for _, each in pairs],
        "stderrs": [each.program.stderr for _, each in pairs],
        "results": [None] * len(ids),
    }
    assert _values(plain.ids(False)) == [each for each, code in zip(ids, codes, strict=True) if code == 0]
    assert _values(plain.ids(True)) == [each for each, code in zip(ids, codes, strict=True) if code != 0]
    assert sum(plain.tally().values()) == len(ids)
    assert plain.tally()["failed", Priority.MED] == sum(
        code != 0 and each.claim.priority is Priority.MED for code, (_, each) in zip(codes, pairs, strict=True)
    )
    assert {key.id for key in plain.keys()} == set(ids)  # noqa: SIM118 - a method of its own
    assert sorted(plain.tokens()) == columns["tokens"]
    assert plain.runs_ms() == runs_ms
    waits_ms = [
        max(0.0, (begin - each.claim.submitted_at).total_seconds() * 1000)
        for begin, (_, each) in zip(starts, pairs, strict=True)
    ]
    assert plain.waits_ms() == list(map(round, waits_ms))

    plain.write_done(tmp_path, NODE)
    for number, (task_id, (_, each)) in enumerate(zip(ids, pairs, strict=True)):
        found = json.loads((tmp_path / f"{task_id}.done").read_bytes())
        assert (found["name"], found["priority"]) == (each.task.name or task_id, each.claim.priority.name)
        assert found["submitted_at"] == utc_text(each.claim.submitted_at)
        assert (found["started_at"], found["finished_at"]) == (utc_text(starts[number]), utc_text(ends[number]))
        assert found["reason"] == (f"exit {codes[number]}" if codes[number] else None)
    assert not list(tmp_path.glob(".*"))


def test_who_leaves_a_file_or_is_unknown_is_not_plain(start: Start, tmp_path: Path) -> None:
    now = datetime.now(timezone.utc)
    held = {n: _held(tmp_path, n, 0, submitted_at=now) for n in range(1, 9)}
    left = {2: "result", 5: "progress", 7: "result"}
    for handle, name in left.items():
        held[handle].program.env.append(f"LEAVE={getattr(held[handle].program, name)}".encode())
    held[3].plain = False
    events, plain = _run(start(lanes=2), held)
    assert {event.handle for event in events if event.kind == EXITED} == {*left, 3}
    assert sorted(plain.handles()) == [1, 4, 6, 8]
    run = start()
    run.core.submit([held[1].launch(1)])
    told: list[Event] = []
    while not any(event.kind == EXITED for event in told):
        told += run.core.poll_ends(None, {}, _no_result)[0]


def test_no_ends_are_empty_arrays(tmp_path: Path) -> None:
    plain = PlainEnds()
    assert not plain
    assert {name: _values(array) for name, array in plain.columns().items()}["ids"] == []
    assert plain.tally() == {}
    plain.write_done(tmp_path, NODE)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        plain.write_done(tmp_path / "nowhere", NODE)
