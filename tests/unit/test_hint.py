"""The folder hint: it ends a wait for what concerns us, soon, and for nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pysched.intake.hint import FolderHint

LONG_S = 60.0  # a wait that only a hint ends
SHORT_S = 0.05  # one that nothing ends


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "queue").mkdir()
    return tmp_path / "queue"


@pytest.fixture
def hint(folder: Path) -> Iterator[FolderHint]:
    hint = FolderHint(folder, ".task")
    hint.wait(LONG_S)  # the first returns when the watch stands
    yield hint
    hint.close()


def returns(hint: FolderHint, after: Callable[[], object]) -> bool:
    """Whether a long wait ends by itself once `after` has been done."""
    thread = threading.Thread(target=hint.wait, args=(LONG_S,), daemon=True)
    thread.start()
    after()
    thread.join(10.0)
    return not thread.is_alive()


def test_a_file_that_is_written_in_place(hint: FolderHint, folder: Path) -> None:
    assert returns(hint, lambda: (folder / "a.task").write_text("x"))


def test_a_file_that_is_renamed_into_place(hint: FolderHint, folder: Path) -> None:
    (folder.parent / "a.tmp").write_text("x")
    assert returns(hint, lambda: os.rename(folder.parent / "a.tmp", folder / "a.task"))


def test_a_link_is_seen(hint: FolderHint, folder: Path) -> None:
    (folder.parent / "a.tmp").write_text("x")
    assert returns(hint, lambda: os.link(folder.parent / "a.tmp", folder / "a.task"))


def test_other_names_are_passed_over(hint: FolderHint, folder: Path) -> None:
    (folder / "a.tmp").write_text("x")
    waiting = threading.Thread(target=hint.wait, args=(LONG_S,), daemon=True)
    waiting.start()
    (folder / "b.tmp").write_text("x")
    waiting.join(SHORT_S)
    assert waiting.is_alive()
    hint.wake()
    waiting.join(10.0)
    assert not waiting.is_alive()


def test_a_file_that_came_before_the_wait_is_not_missed(hint: FolderHint, folder: Path) -> None:
    (folder / "a.task").write_text("x")
    assert returns(hint, lambda: None)


def test_a_folder_that_was_replaced_is_watched_again(hint: FolderHint, folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    hint.wait(LONG_S)  # told that it is gone
    folder.mkdir()
    hint.wait(LONG_S)  # watches the new one
    assert returns(hint, lambda: (folder / "a.task").write_text("x"))


def test_a_missing_folder_costs_the_timeout(tmp_path: Path) -> None:
    hint = FolderHint(tmp_path / "missing", ".task")
    hint.wait(SHORT_S)
    hint.close()


def test_wake_ends_this_wait_and_the_next(hint: FolderHint) -> None:
    assert returns(hint, hint.wake)
    hint.wait(LONG_S)
