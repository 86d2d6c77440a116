"""How many threads numeric libraries compute with, changed in a process that has them loaded.

Their variables are read when they are loaded, which in the zygote was with one thread each: threads would not survive a
fork.  Those that can be told later are told in the job.  What OpenMP is told holds for the main thread.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping

_LIBRARIES = re.compile(r"openblas|blis|mkl_rt|gomp|iomp|libomp")
_SETTERS = (
    *(f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_", "_64")),
    "MKL_Set_Num_Threads", "bli_thread_set_num_threads", "omp_set_num_threads",
)  # fmt: skip
_MODULES = ("torch", "numexpr")  # that have a pool of their own, and a function `set_num_threads`


def setters() -> list[Callable[[int], object]]:
    """Of the libraries that this process has loaded."""
    found: list[Callable[[int], object]] = []
    for path in _loaded():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:  # it has been replaced on the disk
            continue
        for name in _SETTERS:
            function = getattr(library, name, None)
            if function is not None:
                function.argtypes, function.restype = [ctypes.c_int], None
                found.append(function)
    found += [sys.modules[name].set_num_threads for name in _MODULES if name in sys.modules]
    return found


def _loaded() -> Iterator[str]:
    seen: set[str] = set()
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path and path not in seen and _LIBRARIES.search(os.path.basename(path)):
                seen.add(path)
                yield f"/{path}"


def wanted(variables: Mapping[bytes, bytes]) -> int:
    """By an environment."""
    text = variables.get(b"OMP_NUM_THREADS", b"")
    return max(1, int(text)) if text.isdigit() else 1
