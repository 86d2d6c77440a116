"""What an attempt is to the core: a process to be started."""

from __future__ import annotations

from dataclasses import dataclass

from pysched._core import Pattern


@dataclass(slots=True, kw_only=True)
class Program:
    """A process to be started, as bytes the kernel takes, and the files it will leave."""

    pattern: Pattern  # that of all attempts of the task
    env: list[bytes]  # b"NAME=value", behind those of the pattern
    stdout: str  # absolute paths
    stderr: str
    result: str  # PYSCHED_RESULT
    progress: str  # PYSCHED_PROGRESS
    mark: int  # mark_of the attempt
    warm: bool = False  # forked by the zygote: argv is what that is told, see ml/zygote.py
    reuse: int = 0  # warm, in a worker for calls of this number; 0: in a process of its own
