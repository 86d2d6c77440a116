"""When the recorder begins its next batch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pysched.model import AttemptKey, Exit, Outcome, Record, State
from pysched.recorder import recorder
from pysched.recorder.recorder import Recorder
from pysched.recorder.spool import Spool

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
DEADLINE_S = 60.0


def _outcome(task_id: str) -> Outcome:
    end = Exit(pid=1, started_at=NOW, finished_at=NOW, exit_code=0)
    state = State.SUCCEEDED
    return Outcome(key=AttemptKey(task_id, 1, 1), exit=end, attempt_state=state, next_state=state, reason=None)


def test_a_batch_gathers_while_there_is_a_backlog_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_GATHER_S", (0.0, 3_600.0))
    backlog = False
    gathering = threading.Event()
    written: queue.SimpleQueue[str] = queue.SimpleQueue()

    def finish(outcomes: Sequence[Outcome]) -> tuple[list[Record], list[AttemptKey]]:
        for outcome in outcomes:
            written.put(outcome.key.id)
        return [], []

    def look() -> bool:
        if backlog:
            gathering.set()
        return backlog

    spool = Spool(tmp_path / "spool")
    spool.prepare()
    found = Recorder(
        spool,
        start=lambda started: [],
        finish=finish,
        finish_plain=lambda ends: None,
        outcomes=lambda ends: [],
        deliver=lambda records: None,
        deliver_plain=lambda ends, batch: None,
        finished=lambda outcomes: None,
        disowned=lambda keys: None,
        backlog=look,
    )
    found.start()
    try:
        found.put([], [_outcome("a")])
        assert written.get(timeout=DEADLINE_S) == "a"
        backlog = True
        found.put([], [_outcome("b")])
        assert gathering.wait(DEADLINE_S)
        found.put([], [_outcome("c")])
        assert written.empty()
        backlog = False
        found.put([], [_outcome("d")])
        assert [written.get(timeout=DEADLINE_S) for _ in range(3)] == ["b", "c", "d"]
    finally:
        found.stop()
