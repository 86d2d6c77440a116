"""The queue folder: odd files, files still being written, removal and rejection."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest

from pysched.errors import TaskError
from pysched.intake.folder import QueueFolder


@pytest.fixture
def folder(tmp_path: Path) -> QueueFolder:
    folder = QueueFolder(tmp_path / "queue")
    folder.prepare()
    return folder


def drop(folder: QueueFolder, name: str, data: bytes = b"command: true") -> Path:
    temporary = folder.path / f".{name}"
    temporary.write_bytes(data)
    os.rename(temporary, folder.path / name)
    return folder.path / name


def test_scan_gives_task_files_oldest_first(folder: QueueFolder) -> None:
    for age, name in ((30, "c.task"), (10, "a.task"), (20, "b.task")):
        os.utime(drop(folder, name), (1_000_000 - age, 1_000_000 - age))
    drop(folder, "readme.txt")
    drop(folder, ".hidden.task")
    assert [file.name for file in folder.scan()] == ["c.task", "b.task", "a.task"]


def test_a_file_that_a_writer_has_open_is_left_alone(folder: QueueFolder) -> None:
    with (folder.path / "slow.task").open("wb") as writer:
        writer.write(b"command: echo hal")
        writer.flush()
        (file,) = folder.scan()
        assert folder.read(file) is None
        writer.write(b"lo")
    (file,) = folder.scan()
    assert folder.read(file) == b"command: echo hallo"


def test_a_file_that_changed_since_the_scan_waits_for_the_next(folder: QueueFolder) -> None:
    path = drop(folder, "x.task", b"one")
    (file,) = folder.scan()
    path.write_bytes(b"two two")
    assert folder.read(file) is None
    folder.remove(file)
    assert path.read_bytes() == b"two two"


def test_what_is_no_regular_file_is_refused_and_moved(folder: QueueFolder, tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.write_text("command: true")
    (folder.path / "link.task").symlink_to(target)
    os.mkfifo(folder.path / "fifo.task")
    (folder.path / "dir.task").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / "socket.task"))
    for file in folder.scan():
        with pytest.raises(TaskError, match="regular file"):
            folder.read(file)
        folder.reject(file, "no")
    assert os.listdir(folder.path) == []
    assert {"link.task", "fifo.task", "dir.task", "socket.task", "link.reason"} <= set(os.listdir(folder.rejected))
    assert target.read_text() == "command: true"


def test_rejecting_the_same_name_twice_keeps_both(folder: QueueFolder) -> None:
    for number in range(3):
        drop(folder, "x.task", f"bad {number}".encode())
        (file,) = folder.scan()
        folder.reject(file, f"reason {number}")
    kept = {path.name: path.read_text() for path in folder.rejected.iterdir()}
    assert kept == {
        "x.task": "bad 0",
        "x.reason": "reason 0\n",
        "x.1.task": "bad 1",
        "x.1.reason": "reason 1\n",
        "x.2.task": "bad 2",
        "x.2.reason": "reason 2\n",
    }


def test_a_large_file_is_refused_unread(folder: QueueFolder) -> None:
    drop(folder, "big.task", b"x" * (2 * 1024 * 1024))
    (file,) = folder.scan()
    with pytest.raises(TaskError, match="2097152 bytes long"):
        folder.read(file)


def test_gone_is_fine(folder: QueueFolder) -> None:
    path = drop(folder, "x.task")
    (file,) = folder.scan()
    path.unlink()
    assert folder.read(file) is None
    folder.remove(file)
    with pytest.raises(FileNotFoundError):
        folder.reject(file, "no")


def test_a_folder_that_vanishes_is_made_again(folder: QueueFolder) -> None:
    folder.path.rmdir()
    assert folder.scan() == []
    assert folder.path.is_dir()


class Clock:
    """The monotonic clock, which waits for us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_what_cannot_be_opened_for_the_moment_is_not_refused(
    folder: QueueFolder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    clock = Clock(monkeypatch)
    drop(folder, "x.task")
    (file,) = folder.scan()

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            folder.read(file)
    assert folder.scan() == []
    clock.now_s += 2.0
    assert folder.scan() == [file]
    assert folder.read(file) == b"command: true"


def test_what_cannot_be_removed_is_tried_again_ever_less_often(
    folder: QueueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    path = drop(folder, "x.task")

    def fail(_: str) -> None:
        raise OSError(errno.EIO, "bad disk")

    (file,) = folder.scan()
    pauses = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        for _ in range(12):
            with pytest.raises(OSError, match="bad disk"):
                folder.remove(file)
            began_s = clock.now_s
            while not folder.scan():
                clock.now_s += 1.0
            pauses.append(clock.now_s - began_s)
    assert pauses == sorted(pauses)
    assert pauses[0] == 1.0
    assert pauses[-1] == 300.0
    folder.remove(file)
    assert not path.exists()


def test_files_that_cannot_be_removed_take_no_place_of_others(
    folder: QueueFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pysched.intake.folder.SCAN_MAX", 2)
    for name in ("a.task", "b.task"):
        drop(folder, name)
    with monkeypatch.context() as broken:
        broken.setattr(os, "unlink", _refuse)
        for file in folder.scan():
            with pytest.raises(PermissionError):
                folder.remove(file)
    assert folder.scan() == []
    drop(folder, "c.task")
    assert [file.name for file in folder.scan()] == ["c.task"]


def _refuse(*_: object) -> None:
    raise PermissionError


def test_plain_files_are_read_and_removed_many_at_a_time(folder: QueueFolder) -> None:
    for number in range(300):
        drop(folder, f"{number}.task", b"%d" % number * 5)
    files = folder.scan()
    assert folder.read_plain(files) == [file.stem.encode() * 5 for file in files]
    assert folder.remove_plain(files) == [True] * 300
    assert os.listdir(folder.path) == []
    assert folder.read_plain(files) == [None] * 300
    assert folder.remove_plain(files) == [False] * 300


def test_what_is_not_plain_is_left_to_be_looked_at_alone(folder: QueueFolder, tmp_path: Path) -> None:
    drop(folder, "plain.task", b"plain")
    drop(folder, "empty.task", b"")
    drop(folder, "long.task", b"x" * 16_385)
    drop(folder, "longest.task", b"y" * 16_384)
    changed = drop(folder, "changed.task", b"one")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder.path / "link.task").symlink_to(tmp_path / "secret")
    os.mkfifo(folder.path / "pipe.task")
    (folder.path / "folder.task").mkdir()
    with (folder.path / "open.task").open("wb") as writer:
        writer.write(b"half")
        writer.flush()
        files = {file.name: file for file in folder.scan()}
        changed.write_bytes(b"two")
        os.utime(changed, ns=(0, 0))
        found = dict(zip(files, folder.read_plain(list(files.values())), strict=True))
    assert {name: data for name, data in found.items() if data is not None} == {
        "plain.task": b"plain",
        "longest.task": b"y" * 16_384,
    }
    assert folder.remove_plain([files["changed.task"], files["folder.task"]]) == [False, False]
    assert changed.read_bytes() == b"two"


def test_a_read_leaves_no_lease_behind(folder: QueueFolder) -> None:
    path = drop(folder, "x.task", b"one")
    assert folder.read_plain(folder.scan()) == [b"one"]
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # EWOULDBLOCK under a lease
    os.close(descriptor)
