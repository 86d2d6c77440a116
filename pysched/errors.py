"""Every error pysched raises on purpose.

::

    PyschedError                     .exit_code 1
    ├── InputError                   what the user gave is wrong; nothing was changed          2
    │   ├── TaskError                a task breaks the schema; names field and line          2
    │   ├── ConflictError            the id is taken by a task with other content             2
    │   └── SettingsError            an option, variable or settings file is wrong            2
    ├── NotFoundError                no such task or node                                     3
    ├── ServerError                  the control plane did not do it (client side)            1
    │   ├── ServerUnreachable        … because nobody answered                                4
    │   └── Unauthorized             … because the token is missing or wrong                  1
    ├── StoreError                   the store cannot do it                                   1
    │   ├── DatabaseUnreachable      … because PostgreSQL does not answer                     1
    │   │   ├── DatabaseDown         … and says so: nobody listens, or it starts or stops     1
    │   │   └── DatabaseRefused      … for it does not let us in                              1
    │   ├── DatabaseReadOnly         … because PostgreSQL takes no writes now                 1
    │   └── EmbeddedError            … because the embedded server cannot run                 1
    └── NodeError                    a node cannot start or go on                             1
        ├── HomeInUse                another process owns the home folder                     1
        ├── NodeSuperseded           a newer pysched has changed the database                69
        └── NodeDefect               a node ended by a mistake of pysched                    70

The latter two codes are for the guard of a node, which itself ends with 1.

A message says what is wrong, where, and what would be right, in one line.
"""

from __future__ import annotations

from dataclasses import dataclass


class PyschedError(Exception):
    """pysched could not do what was asked."""

    exit_code = 1  # of the command line


class InputError(PyschedError):
    """What was given is wrong; nothing was changed."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a task."""

    field: str  # dotted path, e.g. `env.PATH`; empty for the document as a whole
    message: str  # what is wrong; what would be right
    line: int | None = None  # in a file, from 1

    def __str__(self) -> str:
        parts = [f"line {self.line}"] if self.line is not None else []
        if self.field:
            parts.append(self.field)
        return ": ".join([*parts, self.message])


class TaskError(InputError):
    """A task breaks the schema."""

    def __init__(self, *problems: Problem, index: int | None = None) -> None:
        self.problems = problems
        self.index = index  # position in a batch, from 0
        text = " | ".join(map(str, problems))
        super().__init__(text if index is None else f"task {index}: {text}")


class ConflictError(InputError):
    """The id is taken by a task with other content."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(
            f"id: {task_id!r} is the id of a task with other content; use a new id, or send the same content again"
        )


class SettingsError(InputError):
    """An option, an environment variable or the settings file is wrong."""


class NotFoundError(PyschedError):
    """No such task or node."""

    exit_code = 3


class ServerError(PyschedError):
    """The control plane refused or failed."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status  # HTTP status, if there was an answer


class ServerUnreachable(ServerError):
    """Nobody answers at the server's address."""

    exit_code = 4


class Unauthorized(ServerError):
    """The token is missing or wrong."""


class StoreError(PyschedError):
    """The store cannot do what was asked."""


class DatabaseUnreachable(StoreError):
    """PostgreSQL does not answer."""


class DatabaseDown(DatabaseUnreachable):
    """PostgreSQL is down: nobody listens at its address, or it is starting or stopping."""


class DatabaseRefused(DatabaseUnreachable):
    """PostgreSQL does not let us in: the role, its password, the database or pg_hba.conf is not right."""


class DatabaseReadOnly(StoreError):
    """PostgreSQL takes no writes: it is a standby, or was set so."""


class EmbeddedError(StoreError):
    """The embedded PostgreSQL server cannot run."""


class NodeError(PyschedError):
    """A node cannot start or go on."""


class HomeInUse(NodeError):
    """Another process owns the home folder."""

    def __init__(self, message: str, *, owner: str) -> None:
        super().__init__(message)
        self.owner = owner  # as `the node with pid 7`


class NodeSuperseded(NodeError):
    """A newer pysched has changed the database: to start this one again is of no use."""

    exit_code = 69


class NodeDefect(NodeError):
    """A node ended by a mistake of pysched; its guard tells that from what the world does to it."""

    exit_code = 70
