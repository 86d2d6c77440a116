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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
Contents = Sequence["bytes | None"]  # of files; None: ask for it by itself


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
                batches = [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
                if sum(itertools.starmap(self._take, self._with_contents(batches))) == 0:
                    return
        except StoreError as error:
            if not self._store_down:
                self._log.warning("files wait, the store does not answer", error=str(error))
            self._store_down = True
        except OSError as error:
            self._log.error("cannot scan the queue folder", error=str(error))
        else:
            self._store_down = False

    def _with_contents(self, batches: Sequence[Sequence[Found]]) -> Iterator[tuple[Sequence[Found], Contents]]:
        """Each with what can plainly be read; the next one is read while the store is at this one."""
        if len(batches) <= 1:
            yield from ((batch, self._folder.read_plain(batch)) for batch in batches)
            return
        with ThreadPoolExecutor(1, "intake-reader") as reader:
            ahead = reader.submit(self._folder.read_plain, batches[0])
            for batch, following in itertools.zip_longest(batches, batches[1:]):
                contents = ahead.result()
                if self._stop.is_set():
                    return
                if following is not None:
                    ahead = reader.submit(self._folder.read_plain, following)
                yield batch, contents

    def _take(self, files: Sequence[Found], contents: Contents) -> int:
        """One batch; returns how many files have left the folder."""
        if self._stop.is_set():
            return 0
        parsed: list[tuple[Found, Task]] = []
        done = 0
        for file, data in zip(files, contents, strict=True):
            try:
                if data is None:
                    data = self._folder.read(file)
                if data is not None:
                    parsed.append((file, parse_task_file(file.stem, data)))
            except TaskError as error:
                done += self._reject(file, error)
            except OSError as error:
                self._log.error("a file cannot be read now, it waits", file=file.name, error=str(error))
        if parsed:
            verdicts = self._accept([task for _, task in parsed])
            accepted: list[Found] = []
            for (file, _), verdict in zip(parsed, verdicts, strict=True):
                if isinstance(verdict, PyschedError):
                    done += self._reject(file, verdict)
                else:
                    accepted.append(file)
            for file, removed in zip(accepted, self._folder.remove_plain(accepted), strict=True):
                done += 1 if removed else self._remove(file)
        return done

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
