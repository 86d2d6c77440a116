"""Where an embedded cluster lies, which user owns it, and how programs are run as that user."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pysched.errors import EmbeddedError

PORT = 5432  # part of the socket's name; nothing listens on the network
_CLUSTERS = Path("/var/lib/pysched/clusters")  # of root's homes that the server's user cannot reach
_ACCOUNTS = ("postgres", "nobody")  # root's server runs as the first of these that exists
_SOCKET_BYTES = 107  # of a Unix socket's path, on Linux
_ERROR = re.compile(r"\b(error|FATAL|PANIC): ")  # what comes after it says what is done about it, or where to look
_PLAIN = re.compile(r"""[^,"'\\\x00-\x1f]+""")  # paths that need no care in lists and connection strings


@dataclass(frozen=True, slots=True)
class Owner:
    """The user the server runs as: an unprivileged one if we are root, else ourselves (`account` is None)."""

    account: pwd.struct_passwd | None

    @classmethod
    def current(cls) -> Owner:
        if os.geteuid() != 0:
            return cls(None)
        for name in _ACCOUNTS:
            try:
                return cls(pwd.getpwnam(name))
            except KeyError:
                continue
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and there is no user {' or '.join(_ACCOUNTS)}; add one or use --database"
        )

    @property
    def uid(self) -> int:
        return os.geteuid() if self.account is None else self.account.pw_uid

    def give(self, path: Path) -> None:
        """Make the server's user the owner."""
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)

    def reaches(self, folder: Path) -> bool:
        """Whether the server's user may pass through `folder` and all above it."""
        if self.account is None:
            return True
        real = folder.resolve()
        return all(self._passes(step.stat()) for step in (real, *real.parents))

    def _passes(self, status: os.stat_result) -> bool:
        assert self.account is not None  # noqa: S101 - for mypy
        if status.st_uid == self.account.pw_uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.account.pw_gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)

    def run(self, command: list[str], *, cwd: Path, timeout_s: float) -> None:
        """Run to its end as the server's user, apart from our terminal; `EmbeddedError` with what it says if it fails.

        The environment is a fixed one: PGPORT, PGDATA and their like are not meant for this server.
        """
        name = Path(command[0]).name
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=timeout_s,
                check=False,
                user=None if self.account is None else self.account.pw_uid,
                group=None if self.account is None else self.account.pw_gid,
                extra_groups=None if self.account is None else [],
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"{name} did not end within {timeout_s:g} s") from None
        except PermissionError as error:
            raise EmbeddedError(f"cannot run {name}: {error.strerror}; use --database URL") from None
        if done.returncode != 0:
            lines = [line.strip() for line in done.stdout.decode("utf-8", "replace").split("\n") if line.strip()]
            told = [line for line in lines if _ERROR.search(line)] or lines[-1:] or [f"exit code {done.returncode}"]
            raise EmbeddedError(f"{name}: {told[0]}")


@dataclass(frozen=True, slots=True)
class Placement:
    """The paths of one home's cluster, all below `base`, except for a socket whose path would be too long."""

    home: Path
    base: Path
    owner: Owner

    @property
    def data(self) -> Path:
        return self.base / "postgres"

    @property
    def staging(self) -> Path:
        """Where a cluster is made before it gets its name."""
        return self.base / "postgres.new"

    @property
    def passwords(self) -> Path:
        """For initdb, which runs as the server's user."""
        return self.base / "postgres.pwfile"

    @property
    def log(self) -> Path:
        return self.base / "postgres.log"

    @property
    def socket_folder(self) -> Path:
        """The cluster itself if that is possible, else a short path of its own."""
        if _fits(self.data):
            return self.data
        return _short_lived() / f"pysched-{self.owner.uid}-{_digest(self.home)}"

    def prepare(self) -> None:
        """Make `base`, and let the home tell where it is."""
        if self.base != self.home:
            self.base.mkdir(parents=True, exist_ok=True, mode=0o711)
            pointer = _pointer(self.home)
            temporary = pointer.with_suffix(".tmp")
            temporary.write_text(f"{self.base}\n")
            temporary.replace(pointer)

    def prepare_socket(self) -> Path:
        """The socket's folder, private to the server's user."""
        folder = self.socket_folder
        if folder != self.data:
            try:
                folder.mkdir(mode=0o700)
                self.owner.give(folder)
            except FileExistsError:
                status = folder.lstat()
                if not stat.S_ISDIR(status.st_mode) or status.st_uid != self.owner.uid or status.st_mode & 0o077:
                    raise EmbeddedError(f"{folder} must be a private folder of the server's user; remove it") from None
        return folder

    def prepare_log(self, limit: int) -> None:
        """A log that the server's user can write; one of more than `limit` bytes is set aside."""
        if self.log.exists() and self.log.stat().st_size > limit:
            self.log.replace(self.log.with_name("postgres.log.1"))
        os.close(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self.owner.give(self.log)

    def last_words(self) -> str:
        """The last line of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            lines = []
        return next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")

    def remove_socket(self) -> None:
        """What the server leaves of it when it ends."""
        if self.socket_folder != self.data:
            shutil.rmtree(self.socket_folder, ignore_errors=True)

    def remove(self) -> None:
        """The cluster and all that belongs to it."""
        for folder in (self.data, self.staging):
            if folder.exists():
                shutil.rmtree(folder)
        for path in (self.log, self.log.with_name("postgres.log.1"), self.passwords, _pointer(self.home)):
            path.unlink(missing_ok=True)
        self.remove_socket()
        if self.base != self.home and self.base.exists():
            self.base.rmdir()


def place(home: Path, owner: Owner) -> Placement:
    """Where the cluster of `home` lies, or would lie."""
    try:
        return Placement(home, Path(_pointer(home).read_text().rstrip("\n")), owner)
    except FileNotFoundError:
        pass
    inside = Placement(home, home, owner)
    if inside.data.exists() or owner.reaches(home):
        return inside
    return Placement(home, _CLUSTERS / _digest(home), owner)


def _pointer(home: Path) -> Path:
    return home / "postgres.place"


def _digest(home: Path) -> str:
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]


def _fits(folder: Path) -> bool:
    """Whether a socket in `folder` can be named, by the kernel and in a connection string."""
    path = str(folder / f".s.PGSQL.{PORT}")
    return len(os.fsencode(path)) <= _SOCKET_BYTES and _PLAIN.fullmatch(path) is not None


def _short_lived() -> Path:
    """The system's folder for sockets and the like."""
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
