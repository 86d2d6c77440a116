"""Settings of the server side: command line over environment (`PYSCHED_…`) over `HOME/pysched.toml` over defaults.

The client commands read the same names through `click` alone and never import this module.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pysched.errors import SettingsError
from pysched.home import default_home
from pysched.model import Priority

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS_FILE = "pysched.toml"


def _priorities(given: object) -> object:
    """Of text as LOW,MED, or a list, in any case."""
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    found = [str(name).strip().upper() for name in names]
    for name in found:
        if name not in Priority.__members__:
            raise ValueError(f"{name!r} is no priority; use HIGH, MED or LOW, as LOW,MED")
    return found


class Settings(BaseSettings):
    """Everything a node, the control plane and their store can be told."""

    model_config = SettingsConfigDict(env_prefix="PYSCHED_", extra="forbid", frozen=True, env_ignore_empty=True)

    home: Path = Field(default_factory=default_home, description="database, logs, token, queue and completed folders")
    database: str | None = Field(None, description="PostgreSQL URL; without one the embedded server runs in the home")

    workers: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default_factory=lambda: os.cpu_count() or 1, description="attempts that run at once"
    )
    lanes: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None, description="native dispatch threads; by default one a processor, at most one a worker"
    )
    cpus: Annotated[float, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="processors that tasks may ask for in all; by default those that this process may use"
    )
    mem: ByteSize | None = Field(
        None, description="memory that tasks may ask for in all, as 48GiB; by default the machine's, or the cgroup's"
    )
    gpus: str | None = Field(
        None,
        description="GPUs that tasks may ask for, as CUDA_VISIBLE_DEVICES names them: 0,1; none for none; by default "
        "those that NVML sees",
    )
    affinity: bool = Field(
        False, description="pin attempts that ask for processors to processors of their own, as far as there are some"
    )
    cgroup: Literal["auto", "off"] = Field(
        "auto",
        description="attempts in control groups of their own, so that the kernel ends all of them, where this user may "
        "make some",
    )
    memory_pressure: Annotated[float, Field(ge=0, le=100)] = Field(
        20.0,
        description="percent of the last 10 s in which some process waited for memory, from which on a node runs fewer "
        "attempts until that passes; 0: never",
    )
    cpu_pressure: Annotated[float, Field(ge=0, le=100)] = Field(
        90.0,
        description="the same for processors, while eight tasks a processor want to run; never below four attempts a "
        "processor; 0: never",
    )
    pressure: Path | None = Field(
        None,
        description="folder with the files of pressure: /proc/pressure, or a cgroup of version 2; by default our own "
        "cgroup, if it has them, else the machine's",
    )
    queue: Path | None = Field(None, description="folder watched for .task files; HOME/queue by default")
    completed: Path | None = Field(None, description="folder that gets the .done files; HOME/completed by default")
    poll_s: Annotated[float, Field(gt=0, le=60)] = Field(
        1.0, description="scan of the queue folder, for files that inotify does not tell of"
    )
    ageing_s: Annotated[float, Field(ge=0, le=31_536_000)] = Field(
        600.0, description="wait for each priority above its own after which a task starts as one of HIGH; 0: never"
    )
    retention_days: Annotated[float, Field(ge=0, le=36_500)] = Field(
        30.0, description="days after which an ended task is removed, with its logs; 0: never"
    )
    log_limit: ByteSize = Field(
        ByteSize(64 * 2**20),
        description="bytes each of stdout and stderr of an attempt may have, as 64MiB; 0 for no limit",
    )
    on_log_limit: Literal["truncate", "fail"] = Field(
        "truncate", description="what becomes of an attempt that writes more: its log is cut, or it fails, too"
    )
    warm: bool = Field(
        True, description="start ML tasks without a command from a process that has their modules imported already"
    )
    preload: list[str] = Field(
        ["numpy"], description="modules that this process imports, as numpy, torch, sklearn.linear_model"
    )
    # Text, too, so that the environment need not be JSON.
    reuse: Annotated[list[str] | str, BeforeValidator(_priorities)] = Field(
        [],
        description="priorities whose entrypoints are called in reused workers, as LOW,MED, unless a task says whether "
        "its own is",
    )
    drain_timeout: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="seconds a stopping node waits for running jobs before it hands them back; for ever by default",
    )
    on_outage: Literal["auto", "keep", "kill"] = Field(
        "auto",
        description="running jobs, while the database says for longer than a lease that it is down: kept, killed, or "
        "(auto) kept where no other node can take them meanwhile",
    )

    host: str = Field("127.0.0.1", description="address the API listens on")
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(
        8321, description="port the API listens on; 0 picks a free one"
    )
    token: str | None = Field(None, description="bearer token; HOME/token by default, made on first start")
    no_auth: bool = Field(False, description="serve without a token; loopback only")
    mirror: Path | None = Field(None, description="folder in which the API mirrors accepted tasks as .task files")

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill what neither the command line nor the environment gave from HOME/pysched.toml."""
        path = Path(values.get("home") or default_home()) / SETTINGS_FILE
        try:
            with path.open("rb") as file:
                return {**tomllib.load(file), **values}
        except (FileNotFoundError, NotADirectoryError):
            return values
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}; it must be valid TOML") from None

    @property
    def queue_folder(self) -> Path:
        return (self.queue or self.home / "queue").absolute()

    @property
    def completed_folder(self) -> Path:
        return (self.completed or self.home / "completed").absolute()

    @property
    def reused(self) -> frozenset[Priority]:
        return frozenset(Priority[name] for name in self.reuse)

    @property
    def lane_count(self) -> int:
        # Never more lanes than workers: one lane would keep the only slot, and what waits on the others starve.
        return min(self.lanes or os.cpu_count() or 1, self.workers)


def load(**given: object) -> Settings:
    """Settings from what the command line gave (None: not given); raises `SettingsError` in one line."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "settings"
        raise SettingsError(f"{field}: {first['msg'].removeprefix('Value error, ')}") from None
