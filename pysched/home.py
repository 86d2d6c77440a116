"""The home folder: what lies in it, and that one node at a time owns it.

::

    HOME/  pysched.toml  token  api.json           settings, bearer token, where the API listens
           home.id  guard.lock  node.lock          identity over restarts, locks of what runs here
           offers.sock                             where the API gives the node tasks (`pysched.offers`)
           attempts.table                          what runs, for the guard and the next node (`_core.AttemptTable`)
           queue/  rejected/  completed/           files in and out, unless the settings name others
           logs/  work/  profiler.csv              output of attempts, where they start, the profile
           postgres*                               the embedded database
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from pysched.errors import HomeInUse, NodeError

ADDRESS_FILE = "api.json"
TOKEN_FILE = "token"  # noqa: S105 - a file's name


def default_home() -> Path:
    """The platform's state folder; for root a system-wide one, since an unprivileged PostgreSQL must reach it."""
    if os.geteuid() == 0:
        return Path("/var/lib/pysched")
    return Path(platformdirs.user_state_dir("pysched", appauthor=False))


def chosen_home(given: str | Path | None) -> Path:
    """The home that an option or the environment names, or the default."""
    return Path(given or os.environ.get("PYSCHED_HOME") or default_home()).absolute()


class Home:
    """Paths below one home folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.work = self.path / "work"
        self.profile = self.path / "profiler.csv"
        self.attempts = self.path / "attempts.table"
        self._guard_lock = self.path / "guard.lock"

    def prepare(self) -> None:
        """Create the folder where it is missing; `NodeError` if that is not possible."""
        try:
            if not self.path.exists():
                # As root the embedded database runs as another user, who must be able to pass through.
                self.path.mkdir(parents=True, mode=0o711 if os.geteuid() == 0 else 0o700)
            self.work.mkdir(exist_ok=True, mode=0o700)
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise NodeError(f"home {self.path}: {error.strerror}; choose another with --home") from None

    def identity(self) -> uuid.UUID:
        """The home's own id, made once: a new incarnation of its node takes over from the one before."""
        path = self.path / "home.id"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return uuid.UUID(path.read_text().strip())
        identity = uuid.uuid4()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(f"{identity}\n")
        os.replace(temporary, path)
        return identity

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the home as its node; `HomeInUse` if another one has it."""
        with self._held(self.path / "node.lock", f"the node with pid {os.getpid()}"):
            yield

    @contextlib.contextmanager
    def guarded(self) -> Iterator[int]:
        """Hold the home as its guard, by the descriptor that is given; `HomeInUse` if another one has it."""
        with self._held(self._guard_lock, f"the scheduler with pid {os.getpid()}") as descriptor:
            yield descriptor

    def guard_pid(self) -> int | None:
        """The process that guards the home now."""
        try:
            with self._guard_lock.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self._guard_lock.read_text().split()[-1])
        return None

    @contextlib.contextmanager
    def _held(self, path: Path, owner: str) -> Iterator[int]:
        """The kernel frees the lock however we end."""
        with path.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                other = lock.read().strip() or "another process"
                raise HomeInUse(
                    f"home {self.path} is in use by {other}; stop it, or choose another with --home", owner=other
                ) from None
            lock.seek(0)
            lock.truncate()
            lock.write(owner)
            lock.flush()
            yield lock.fileno()
