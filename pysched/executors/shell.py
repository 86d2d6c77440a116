"""Text commands that need no shell: the same program, started without `/bin/sh` in between.

A shell that only executes one program costs as much as a short job.  It is left out where it cannot make a
difference: the text is plain words, the first names no builtin, and it is an executable file that the shell would
find, now.  In all other cases the shell runs, with its own messages and its exit codes 126 and 127.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

# Neither quotes nor anything that a shell expands, redirects, separates or comments with.
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./ \t-]+", re.ASCII)

# What a shell does by itself, or reads as syntax: of POSIX, dash, bash, busybox and ksh.
_OWN = frozenset(
    """
    . : alias autoload bg bind break builtin caller case cd chdir command compgen complete compopt continue coproc
    declare dirs disown do done echo elif else enable esac eval exec exit export false fc fg fi for function
    getopts hash help history if in jobs kill let local logout mapfile newgrp popd print printf pushd pwd read
    readarray readonly return select set shift shopt source suspend test then time times trap true type typeset
    ulimit umask unalias unset until wait whence which while
    """.split()  # noqa: SIM905 - to be read
)
_READ_BY_SHELLS = frozenset({"BASHOPTS", "BASH_ENV", "ENV", "POSIXLY_CORRECT", "SHELLOPTS"})


def plain_words(command: str, env: Mapping[str, str]) -> list[str] | None:
    """The words a shell would make of `command`; None if it takes one to know.  `env` is the task's own."""
    if _PLAIN.fullmatch(command) is None or not _READ_BY_SHELLS.isdisjoint(env):
        return None
    words = command.split()
    return None if not words or words[0] in _OWN or "=" in words[0] else words


def found(program: str, path: str) -> str | None:
    """The file that a shell with this PATH would execute for `program`; None if that is not certain."""
    if "/" in program:
        return program if program.startswith("/") and _executable(program) else None
    for folder in path.split(":"):
        if not folder.startswith("/") or "%" in folder:  # depends on where the job runs; dash's %func
            return None
        if _executable(f"{folder}/{program}"):
            return f"{folder}/{program}"
    return None


def _executable(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK)
    except OSError:
        return False
