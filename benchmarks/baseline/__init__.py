"""The programs in C that the core is measured against, and the least child there can be."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCES = Path(__file__).parent


@dataclass(frozen=True)
class Baseline:
    """Paths of the compiled programs."""

    spawn_loop: str
    noop: str
    file_loop: str


def build(folder: Path) -> Baseline:
    """Compile into `folder` with $CC, or cc."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = {
        "spawn_loop": ["-pthread"],
        "noop": ["-static", "-nostdlib", "-fno-stack-protector"],
        "file_loop": [],
    }
    for name, own in flags.items():
        command = [*compiler, "-O2", "-Wall", "-Wextra", *own, "-o", str(folder / name), str(_SOURCES / f"{name}.c")]
        subprocess.run(command, check=True)
    return Baseline(**{name: str(folder / name) for name in flags})
