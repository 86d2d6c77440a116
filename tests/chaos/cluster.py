"""A PostgreSQL server of the driver's own, whose processes it may kill, and which it starts again.

It listens on a Unix socket only; nodes reach it through proxies (`proxy.py`).  `fsync` is off: whatever dies here is a
process and never the machine, so what was written to the page cache stays.  `synchronous_commit` stays on, since what a
killed server had only in its own buffers is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from pysched.store import binaries
from pysched.store.placement import PORT, Owner
from tests.chaos import processes

START_S = 90.0
_PASSWORD = "chaos"
_INITDB = ["--username=pysched", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "restart_after_crash": "on",
}


class Cluster:
    """Between `start` and `stop`.  `folder` must be one that the server's user may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._sockets = folder / "sockets"
        self._log = folder / "postgres.log"
        self._owner = Owner.current()
        self._programs = next(binaries.available())
        self._server: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()  # for those who stop and start it: two at once would start it twice

    @property
    def socket(self) -> Path:
        return self._sockets / f".s.PGSQL.{PORT}"

    def url(self, host: str, port: int, database: str = "postgres") -> str:
        return f"postgresql://pysched:{_PASSWORD}@{host}:{port}/{database}"

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection of the driver's own, past all proxies."""
        return psycopg.connect(
            host=str(self._sockets), port=PORT, user="pysched", password=_PASSWORD, dbname="postgres", **options
        )

    def create(self) -> None:
        self.folder.chmod(0o711)
        for path in (self._data, self._sockets):
            path.mkdir(mode=0o700)
            self._owner.give(path)
        passwords = self.folder / "password"
        passwords.write_text(f"{_PASSWORD}\n")
        self._owner.give(passwords)
        command = [self._programs.program("initdb"), "-D", str(self._data), f"--pwfile={passwords}", *_INITDB]
        self._owner.run(command, cwd=self.folder, timeout_s=START_S)

    def start(self) -> None:
        """Until it answers; a killed server's last processes may hold it up for a moment."""
        deadline = time.monotonic() + START_S
        while True:
            if self._server is None or self._server.poll() is not None:
                self._spawn()
            with contextlib.suppress(psycopg.Error), self.connect(connect_timeout=5):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start; it says:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, wish: signal.Signals = signal.SIGQUIT) -> bool:
        """End the postmaster by a signal, QUIT for an immediate shutdown, INT for a fast one; whether it ran."""
        server = self._server
        if server is None or server.poll() is not None:
            return False
        server.send_signal(wish)
        try:
            server.wait(START_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        return True

    def backends(self) -> list[int]:
        """The processes that serve clients."""
        if self._server is None:
            return []
        return [pid for pid in processes.children(self._server.pid) if b": pysched " in processes.command(pid)]

    def _spawn(self) -> None:
        settings = {**_SETTINGS, "unix_socket_directories": str(self._sockets)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        account = self._owner.account
        with self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [self._programs.program("postgres"), "-D", str(self._data), *options],
                cwd=self._data,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )
