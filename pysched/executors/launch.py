"""Turns a claimed task into what the core starts: argv, candidates for the program, environment, files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pysched._core import Pattern, Program
from pysched.errors import NodeError
from pysched.executors.files import NAMES, LogFolder
from pysched.executors.shell import found, plain_words
from pysched.model import AttemptKey, Priority, TaskType
from pysched.task import Task

_INHERITED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
)
_INHERITED_PREFIXES = ("LC_", "OMP_", "OPENBLAS_", "MKL_", "CUDA_", "NVIDIA_")
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
# How many threads libraries compute with: as many as the job asks for processors, since the scheduler fills the others.
_THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS"
)  # fmt: skip
# What is read when the interpreter starts or a library is loaded: a warm process has done that already.
_READ_AT_START = re.compile(
    r"PYTHON|LD_|OMP_|KMP_|GOMP_|OPENBLAS|GOTO_|MKL_|BLIS_|NUMEXPR_|NPY_|MALLOC_|GLIBC_|CUDA_|NVIDIA_|LC_|LANG"
)
_WARM_BYTES = 128 * 1024  # of words and environment; what is larger starts cold
_PLANS = 64  # kept at once


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What all attempts of a task have in common."""

    task: Task  # holds the object, by whose identity the plan is known
    cold: Pattern
    warm: Pattern | None  # for the zygote, if that may run it
    words: list[str] | None  # of a text command that runs without a shell if its program is found …
    direct: Callable[[str], Pattern]  # … in that file
    reuse: int  # see Program
    path: str
    takes_params: bool  # in its environment
    warm_bytes: int  # that are left for what an attempt has of its own, if it is to start warm


class Launcher:
    """Prepares the programs of one node.

    `node` is the incarnation, `work` the folder jobs start in by default; `warm`: there is a zygote; `reuse`:
    priorities whose calls are made by reused workers where the task does not say.
    """

    def __init__(
        self,
        *,
        node: str,
        work: Path,
        logs: LogFolder,
        environ: Mapping[str, str],
        warm: bool = False,
        reuse: Collection[Priority] = (),
    ) -> None:
        self._node = node
        self._work = os.fsencode(work)
        self._logs = logs
        self._warm = warm
        self._reuse = reuse
        self._inherited = inherited(environ)
        self._plans: dict[int, _Plan] = {}

    def prepare(self, key: AttemptKey, task: Task, params: str = "{}", *, node: str | None = None) -> Program:
        """`params`: of the task, as JSON, whatever the object says of them; `node`: the incarnation that started the
        attempt, if it was an earlier one.

        Programs of one `Task` object share what they have in common, so who runs a task often keeps the object.
        """
        plan = self._plan(task)
        pattern = plan.cold
        more: list[bytes] = []
        if plan.takes_params:
            # In the environment: up to 64 KiB, below the kernel's limit of 128 KiB for one string.
            more.append(b"PYSCHED_PARAMS=" + os.fsencode(params))
        # Looked for each time: what is found now need not be there for the next attempt.
        file = found(plan.words[0], plan.path) if plan.words is not None else None
        if file is not None:
            pattern = plan.direct(file)
            more.append(b"PWD=" + os.path.realpath(pattern.cwd))
        stem = self._logs.stem(key.id, key.attempt)
        program = Program(pattern, key.id, key.attempt, node or self._node, stem, NAMES, more)
        if plan.warm is None or sum(map(len, program.env)) + len(program.env) > plan.warm_bytes:
            return program
        return Program(
            plan.warm, key.id, key.attempt, node or self._node, stem, NAMES, more, warm=True, reuse=plan.reuse
        )

    def _plan(self, task: Task) -> _Plan:
        plan = self._plans.get(id(task))
        if plan is None:
            if len(self._plans) == _PLANS:
                self._plans.clear()
            plan = self._plans[id(task)] = self._make_plan(task)
        return plan

    def _make_plan(self, task: Task) -> _Plan:
        path = task.env.get("PATH", self._inherited["PATH"])
        argv = _words(task)
        ml = task.command is None and task.type is TaskType.ML
        threads = _threads(task)
        computing = dict.fromkeys(_THREADS, str(threads)) if threads else {}
        env = {**self._inherited, **computing, **_trace(task), **task.env}
        if task.gpus:
            env.pop("CUDA_VISIBLE_DEVICES", None)  # the core says which
        words = [os.fsencode(word) for word in argv]
        cwd = os.fsencode(task.cwd) if task.cwd is not None else self._work
        warm = ml and self._warm and not any(map(_READ_AT_START.match, task.env))
        entries = _entries(env)
        plain = plain_words(task.command, task.env) if isinstance(task.command, str) else None

        def pattern(argv: Sequence[bytes], candidates: Sequence[bytes], env: Sequence[bytes] = entries) -> Pattern:
            return Pattern(
                argv=argv, candidates=candidates, env=env, cwd=cwd, timeout_s=task.timeout_s, grace_s=task.grace_s
            )

        @functools.lru_cache(maxsize=1)  # mostly the same
        def direct(file: str) -> Pattern:
            # What runs without a shell gets PWD as from one.
            others = _entries({name: value for name, value in env.items() if name != "PWD"})
            return pattern([os.fsencode(word) for word in plain or ()], [os.fsencode(file)], others)

        warm_words = [os.fsencode(word) for word in _warm_words(task)]
        return _Plan(
            task=task,
            cold=pattern(words, _candidates(words[0], os.fsencode(path))),
            warm=pattern(warm_words, warm_words[:1]) if warm else None,
            words=plain,
            direct=direct,
            path=path,
            takes_params=ml,
            warm_bytes=_WARM_BYTES - sum(len(entry) + 1 for entry in entries),
            reuse=_environment_key(cwd, task) if self._reuses(task) else 0,
        )

    def _reuses(self, task: Task) -> bool:
        if task.reuse is not None:
            return task.reuse
        return task.entrypoint is not None and task.priority in self._reuse


def _trace(task: Task) -> dict[str, str]:
    """The variables by which OpenTelemetry's tools find the trace that they belong to."""
    context = {"TRACEPARENT": task.traceparent, "TRACESTATE": task.tracestate}
    return {name: value for name, value in context.items() if value is not None}


def _threads(task: Task) -> int:
    """That it should compute with; 0: it does not say."""
    cpus = 0 if task.demand is None else task.demand.cpus
    return max(1, cpus // 1000) if cpus or task.type is TaskType.ML else 0


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """What a job, and the zygote of jobs, gets of the node's own environment."""
    kept = {
        name: value for name, value in environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    kept.setdefault("PATH", _DEFAULT_PATH)
    return kept


def _entries(env: Mapping[str, str]) -> list[bytes]:
    return [os.fsencode(f"{name}={value}") for name, value in env.items()]


def _environment_key(cwd: bytes, task: Task) -> int:
    """Equal for tasks that one process may run: modules are found by the working folder, and may have read variables
    when they were imported."""
    text = json.dumps([os.fsdecode(cwd), sorted(task.env.items())])
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little") | 1


def _warm_words(task: Task) -> list[str]:
    """What `ml/zygote.py` is told to call."""
    if task.entrypoint is not None:
        return ["entrypoint", task.entrypoint]
    return ["ml_task", "--duration_ms", str(task.duration_ms)]


def _words(task: Task) -> list[str]:
    """argv."""
    if isinstance(task.command, str):
        return ["/bin/sh", "-c", task.command]
    if task.command is not None:
        return task.command
    if task.entrypoint is not None:
        return [sys.executable, program_file("entrypoint"), task.entrypoint]
    duration = ["--duration_ms", str(task.duration_ms)]
    if task.type is TaskType.ML:
        return [sys.executable, program_file("ml_task"), *duration]
    # Isolated and without site: the simulation imports next to nothing, so it starts in a third of the time.
    return [sys.executable, "-I", "-S", program_file("system_task"), *duration]


@functools.cache
def program_file(name: str) -> str:
    """The file of `pysched.ml.NAME`.

    Programs run by path and not by -m, lest a folder `pysched` in the job's own folder pass for the package.
    """
    spec = importlib.util.find_spec(f"pysched.ml.{name}")
    if spec is None or spec.origin is None:
        raise NodeError("pysched.ml is not installed; reinstall pysched")
    return spec.origin


def _candidates(program: bytes, path: bytes) -> list[bytes]:
    if b"/" in program:
        return [program]
    return [os.path.join(folder or b".", program) for folder in path.split(b":")]
