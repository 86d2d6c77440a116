"""The thread that turns `.task` files into accepted tasks.

A file's life, and what a crash between two steps leaves::

    dropped ─► read, parsed ─► store.accept COMMIT ─► removed
                   │                  │
                   │                  └ crash here: read again, the same id with the same content is the
                   │                    same task, then removed.  Nothing lost, nothing twice.
                   └► rejected/ + reason

inotify only makes the next scan early; the scan every `poll_s` is the truth, also on network file
systems.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from pysched.errors import PyschedError, StoreError, TaskError
from pysched.intake.folder import SUFFIX, Found, QueueFolder
from pysched.intake.hint import FolderHint
from pysched.intake.taskfile import parse_task_file
from pysched.model import Acceptance
from pysched.task import Task

BATCH = 1_000  # tasks in one accept: large enough to amortise the commit, small enough to stay in the cache

Accept = Callable[[Sequence[Task]], Sequence[Acceptance | PyschedError]]
Read = tuple[Found, "Task | TaskError | None"]  # None: it must be read by itself


class Intake:
    """Feeds one queue folder into `accept`, which commits and returns a verdict for each task."""

    def __init__(self, path: Path, accept: Accept, *, poll_s: float) -> None:
        self._folder = QueueFolder(path)
        self._hint = FolderHint(path, SUFFIX)
        self._accept = accept
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._log = structlog.get_logger("intake").bind(queue=str(path))
        self._store_down = False

    def start(self) -> None:
        self._folder.prepare()
        self._thread.start()

    def stop(self) -> None:
        """Take in no more; returns when the batch under way has ended."""
        self._stop.set()
        self._hint.wake()
        if self._thread.ident is not None:
            self._thread.join()
        self._hint.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.take_all()
            self._hint.wait(self._poll_s)

    def take_all(self) -> None:
        """Everything that waits in the folder now, in arrival order."""
        try:
            while not self._stop.is_set():
                found = self._folder.scan()
                if self._take([found[start : start + BATCH] for start in range(0, len(found), BATCH)]) == 0:
                    return
        except StoreError as error:
            if not self._store_down:
                self._log.warning("files wait, the store does not answer", error=str(error))
            self._store_down = True
        except OSError as error:
            self._log.error("cannot scan the queue folder", error=str(error))
        else:
            self._store_down = False

    def _take(self, batches: Sequence[Sequence[Found]]) -> int:
        """How many files have left the folder.  While the store is at one batch, the one before is removed, and the
        next one read."""
        if len(batches) <= 1:
            taken = [self._accepted(self._read(batch)) for batch in batches]
            return sum(done + self._gone(files, self._folder.remove_plain(files)) for files, done in taken)
        left = 0
        removals: list[tuple[Sequence[Found], Future[Sequence[bool]]]] = []
        with ThreadPoolExecutor(1, "intake-files") as beside:
            ahead = beside.submit(self._read, batches[0])
            try:
                for following in itertools.chain(batches[1:], [None]):
                    read = ahead.result()
                    if self._stop.is_set():
                        break
                    if following is not None:
                        ahead = beside.submit(self._read, following)
                    files, done = self._accepted(read)
                    left += done
                    removals.append((files, beside.submit(self._folder.remove_plain, files)))
            finally:  # the store may have failed meanwhile
                left += sum(self._gone(files, removal.result()) for files, removal in removals)
        return left

    def _read(self, files: Sequence[Found]) -> Sequence[Read]:
        """What is plain about them; the rest is left to `_accepted`."""
        read: list[Read] = []
        for file, data in zip(files, self._folder.read_plain(files), strict=True):
            try:
                read.append((file, None if data is None else parse_task_file(file.stem, data)))
            except TaskError as error:
                read.append((file, error))
        return read

    def _accepted(self, read: Sequence[Read]) -> tuple[Sequence[Found], int]:
        """(The files whose tasks are committed, how many of the others have left the folder)."""
        parsed: list[tuple[Found, Task]] = []
        done = 0
        for file, task in read:
            try:
                if task is None and (data := self._folder.read(file)) is not None:
                    task = parse_task_file(file.stem, data)
                if isinstance(task, TaskError):
                    raise task
                if task is not None:
                    parsed.append((file, task))
            except TaskError as error:
                done += self._reject(file, error)
            except OSError as error:
                self._log.error("a file cannot be read now, it waits", file=file.name, error=str(error))
        if not parsed:
            return [], done
        verdicts = self._accept([task for _, task in parsed])
        accepted: list[Found] = []
        for (file, _), verdict in zip(parsed, verdicts, strict=True):
            if isinstance(verdict, PyschedError):
                done += self._reject(file, verdict)
            else:
                accepted.append(file)
        return accepted, done

    def _gone(self, files: Sequence[Found], removed: Sequence[bool]) -> int:
        return sum(1 if plainly else self._remove(file) for file, plainly in zip(files, removed, strict=True))

    def _remove(self, file: Found) -> int:
        try:
            self._folder.remove(file)
        except OSError as error:
            self._log.error("accepted, but the file cannot be removed", file=file.name, error=str(error))
            return 0
        return 1

    def _reject(self, file: Found, error: PyschedError) -> int:
        reason = str(error)
        try:
            target = self._folder.reject(file, reason)
        except FileNotFoundError:
            return 0  # another node was faster
        except OSError as failure:
            self._log.error("a bad file cannot be moved away", file=file.name, reason=reason, error=str(failure))
            return 0
        self._log.warning("rejected", file=file.name, reason=reason, moved_to=str(target))
        return 1
