"""Results that wait on the node's disk."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timezone
from pathlib import Path

import pytest

from pysched.model import AttemptKey, Exit, Outcome, State
from pysched.recorder.spool import Spool


def outcome(number: int, **fields: object) -> Outcome:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
    end = Exit(pid=number, started_at=moment, finished_at=moment, exit_code=0, wait_ms=1.5, result='{"ü": "\\ud800"}')
    return Outcome(
        key=AttemptKey(id=f"t{number}", attempt=1, token=number),
        exit=end,
        attempt_state=State.SUCCEEDED,
        next_state=State.SUCCEEDED,
        reason=None,
        **fields,  # type: ignore[arg-type]
    )


def opened(folder: Path, **options: int) -> Spool:
    spool = Spool(folder, **options)
    spool.prepare()
    return spool


def is_full(spool: Spool) -> bool:  # so that mypy does not take it for a constant
    return spool.full


def test_what_was_kept_is_read_as_it_was_by_the_next(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    assert not spool
    first, second = [outcome(1), outcome(2, delay_s=0.25)], [outcome(3, counts=False, void=True)]
    spool.append(first)
    spool.append(second)
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    after = opened(tmp_path / "spool")
    assert after
    assert list(after.read()) == [first, second]
    after.append([outcome(4)])
    after.clear()
    assert list((tmp_path / "spool").iterdir()) == []
    assert list(after.read()) == []


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".000000000001.tmp").write_text('{"key"')
    assert list(opened(tmp_path).read()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_version_is_told(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.append([outcome(1)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b'"reason"', b'"why"'))
    with pytest.raises(ValueError, match="why"):
        list(opened(tmp_path).read())


def test_it_is_full_at_its_limit_and_empty_again_after(tmp_path: Path) -> None:
    spool = opened(tmp_path, limit_bytes=100)
    assert not is_full(spool)
    spool.append([outcome(1)])
    assert is_full(spool)
    assert opened(tmp_path, limit_bytes=100).full
    spool.clear()
    assert not is_full(spool)


def test_a_failed_sync_is_not_tried_again_on_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)
    synced: list[int] = []
    really = os.fsync

    def failing(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="input/output"):
        spool.append([outcome(1)])
    assert len(synced) == 1
    assert is_full(spool)  # claim nothing whose result could not be kept
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", really)
    spool.append([outcome(1)])
    assert not is_full(spool)
    assert list(opened(tmp_path).read()) == [[outcome(1)]]
