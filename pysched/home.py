"""The home folder: what lies in it, and that one node at a time owns it.

::

    HOME/  pysched.toml  token  api.json           settings, bearer token, where the API listens
           home.id  node.lock                      identity over restarts, lock of the running node
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


class Home:
    """Paths below one home folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.work = self.path / "work"
        self.profile = self.path / "profiler.csv"

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
        """Hold the home against other nodes; `HomeInUse` if one has it.  The kernel frees the lock however we end."""
        with (self.path / "node.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise HomeInUse(
                    f"home {self.path} is in use by {owner}; stop it, or choose another with --home"
                ) from None
            lock.seek(0)
            lock.truncate()
            lock.write(f"the node with pid {os.getpid()}")
            lock.flush()
            yield
