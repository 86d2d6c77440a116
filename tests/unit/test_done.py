"""`.done` files: what stands in them, and that each is whole or not there."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysched._core import is_missing, moment_of, utc_text, write_files
from pysched.model import Record
from pysched.recorder.done import CompletedFolder, encode

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=5,
)


def _record(task_id: str = "t", **changes: object) -> Record:
    record = Record(
        id=task_id, name=task_id, type="system", priority="MED", status="succeeded", reason=None, exit_code=0,
        signal=None, attempts=1, node=None, submitted_at=NOW, started_at=NOW, finished_at=NOW, wait_ms=0, run_ms=1,
        result=None, stdout=None, stderr=None,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


@given(name=_TEXT, reason=st.none() | _TEXT, code=st.none() | st.integers(-1, 255), result=_JSON, out=st.none() | _TEXT)
def test_all_fields_stand_in_the_order_of_the_contract(
    name: str, reason: str | None, code: int | None, result: object, out: str | None
) -> None:
    record = _record(name=name, reason=reason, exit_code=code, result=result, stdout=out, run_ms=code)
    line = encode(record)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    expected = {field.name: getattr(record, field.name) for field in dataclasses.fields(Record) if field.compare}
    for field in ("submitted_at", "started_at", "finished_at"):
        expected[field] = "2026-01-02T03:04:05.678901Z"
    assert list(json.loads(line).items()) == list(expected.items())


def test_times_are_in_utc_with_all_six_digits() -> None:
    elsewhere = datetime(2026, 1, 2, 5, 0, 0, tzinfo=timezone(timedelta(hours=2)))
    found = json.loads(encode(_record(submitted_at=elsewhere, started_at=None)))
    assert found["submitted_at"] == "2026-01-02T03:00:00.000000Z"
    assert found["started_at"] is None


def test_a_batch_longer_than_what_is_open_at_once_is_written_whole(tmp_path: Path) -> None:
    folder = CompletedFolder(tmp_path / "completed")
    folder.prepare()
    folder.write([_record(f"t-{number}") for number in range(300)])
    assert sorted(os.listdir(folder.path)) == sorted(f"t-{number}.done" for number in range(300))
    assert all(json.loads(path.read_bytes())["id"] == path.stem for path in folder.path.iterdir())


def test_of_two_records_of_one_task_the_later_one_counts(tmp_path: Path) -> None:
    folder = CompletedFolder(tmp_path)
    folder.write([_record("t", attempts=1), _record("u"), _record("t", attempts=2)])
    assert sorted(os.listdir(tmp_path)) == ["t.done", "u.done"]
    assert json.loads((tmp_path / "t.done").read_bytes())["attempts"] == 2


def test_a_file_is_replaced_and_a_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "t.done").write_text("old")
    (tmp_path / "victim").write_text("whole")
    (tmp_path / ".u.done.tmp").symlink_to("victim")
    folder = CompletedFolder(tmp_path)
    folder.write([_record("t")])
    assert json.loads((tmp_path / "t.done").read_bytes())["id"] == "t"
    with pytest.raises(OSError, match=r"u\.done"):
        folder.write([_record("u")])
    assert (tmp_path / "victim").read_text() == "whole"


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    """Within, writing more than `size` bytes fails with EFBIG (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_leaves_nothing_half_done(tmp_path: Path) -> None:
    files = [("a", b"1"), ("b", b"2" * 100), ("c", b"3")]
    with _files_of_at_most(10), pytest.raises(OSError) as failure:  # noqa: PT011 - its number is looked at
        write_files(tmp_path, files)
    assert failure.value.errno == errno.EFBIG
    assert failure.value.filename == str(tmp_path / "b")
    assert os.listdir(tmp_path) == []
    write_files(tmp_path, files)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict(files)


def test_a_name_that_is_taken_by_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError) as failure:
        write_files(tmp_path, [("a", b"1"), ("b", b"2"), ("c", b"3")])
    assert failure.value.filename == str(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failure:
        write_files(tmp_path / "gone", [("a", b"1")])
    assert failure.value.filename == str(tmp_path / "gone")


def test_what_no_file_can_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="NUL"):
        write_files(tmp_path, [("a\0b", b"1")])
    with pytest.raises(TypeError, match="no bytes"):
        write_files(tmp_path, [("a", "text")])  # type: ignore[list-item]
    assert os.listdir(tmp_path) == []


def test_nothing_is_missing_only_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    assert is_missing(str(tmp_path / "other"))
    assert not is_missing(str(tmp_path / "link"))
    assert not is_missing(str(tmp_path / "file"))
    assert not is_missing(str(tmp_path / "file" / "below"))  # ENOTDIR: what is there cannot be told


@given(st.datetimes(min_value=_EPOCH.replace(tzinfo=None), max_value=NOW.replace(tzinfo=None)), st.integers(0, 999))
def test_moments_are_those_of_the_datetime_module(naive: datetime, ns: int) -> None:
    moment = naive.replace(tzinfo=timezone.utc)
    since = moment - _EPOCH
    us = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    assert moment_of(us * 1_000 + ns) == moment
    assert utc_text(moment_of(us * 1_000)) == moment.isoformat(timespec="microseconds")[:-6] + "Z"
    with pytest.raises(ValueError, match="zone"):
        utc_text(naive)
    with pytest.raises(TypeError, match="no datetime"):
        utc_text(None)  # type: ignore[arg-type]
