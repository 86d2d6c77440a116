"""The one task schema, for files, HTTP, command line and Python (CONTRACT § Task).

`Task` validates and normalises; everything a task may say is limited here, so no later stage
checks again.  Input always passes through `parse_task` or `parse_tasks`, which turn pydantic's
complaints into `TaskError` with the field's path and, for an unknown field, the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from pysched import resources, trace
from pysched.errors import Problem, TaskError
from pysched.model import ID_PATTERN, Priority, TaskType, new_id
from pysched.resources import Demand

COMMAND_BYTES = 128 * 1024
PARAMS_BYTES = 64 * 1024
ENV_BYTES = 64 * 1024
BATCH_TASKS = 100_000  # tasks in one batch
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False)
DELAY_S_MAX = 10 * 366 * 86_400.0  # ten years: far past any use, far below what an interval holds


def _priority(value: object) -> object:
    if isinstance(value, str):
        try:
            return Priority[value.upper()]
        except KeyError:
            pass
    elif isinstance(value, Priority):
        return value
    raise ValueError(f"{value!r} is no priority; use HIGH, MED or LOW")


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("contains a NUL character; no process can receive one, remove it")
    return value


def _no_control(value: str) -> str:
    found = _CONTROL.search(value)
    if found is not None:
        raise ValueError(f"contains the control character U+{ord(found[0]):04X}; use printable text")
    return value


def _command(value: str | list[str]) -> str | list[str]:
    words = [value] if isinstance(value, str) else value
    if not words or not words[0].strip():
        raise ValueError("is empty; give a command line as text, or a list with the program first")
    if sum(len(_no_nul(word).encode()) for word in words) > COMMAND_BYTES:
        raise ValueError(f"is longer than {COMMAND_BYTES} bytes; put the text into a file and run that")
    return value


def _params(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    except ValueError:
        raise ValueError("holds a number that is not finite; use null or text for it") from None
    if len(text) > PARAMS_BYTES and len(dump(value).encode()) > PARAMS_BYTES:
        raise ValueError(f"is longer than {PARAMS_BYTES} bytes as JSON; pass the path of a file instead")
    if "\\u0000" in text:
        raise ValueError("contains a NUL character; PostgreSQL cannot hold one, remove it")
    return value


def _env(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not name.isidentifier() or not name.isascii():
            raise ValueError(f"{name!r} is no variable name; use letters, digits and _")
        if name.startswith("PYSCHED_"):
            raise ValueError(f"{name} is set by the scheduler; choose a name that does not start with PYSCHED_")
        _no_nul(text)
    if sum(len(name) + len(text.encode()) + 2 for name, text in value.items()) > ENV_BYTES:
        raise ValueError(f"is longer than {ENV_BYTES} bytes in all; put the values into a file")
    return value


def _traceparent(value: str) -> str:
    if not trace.is_traceparent(value):
        raise ValueError("names no trace: its version is ff, or one of its ids is zero; leave it out")
    return value


def _cwd(value: str) -> str:
    if not _no_nul(value).startswith("/"):
        raise ValueError(f"{value!r} is no absolute path; start it with /")
    return value


def _mem(value: object) -> object:
    return resources.size(value) if isinstance(value, str) else value


def _gpus(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"{value:g} is no number of GPUs; use a part of one, as 0.5, or whole ones")
    return value


_SIZE_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": resources.MEMORY_LEAST, "maximum": resources.MEMORY_MOST},
        {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([KMGTkmgt][Ii]?)?[Bb]?\s*$"},
        {"type": "null"},
    ],
    "default": None,
    "description": "bytes, or text as 512MiB or 4GB; held while it runs, and ends it when it uses more",
}
_PRIORITY_SCHEMA = {"type": "string", "enum": ["HIGH", "MED", "LOW"], "description": "in any case"}
_Priority = Annotated[
    Priority, BeforeValidator(_priority), PlainSerializer(lambda p: p.name), WithJsonSchema(_PRIORITY_SCHEMA)
]
_Id = Annotated[str, Field(pattern=ID_PATTERN)]
_Tag = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_no_control)]


class Task(BaseModel):
    """A task as a user submits it.  Sizes are bytes of UTF-8, times are what the name's suffix says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, title="Task")

    id: Annotated[_Id | None, Field(description="idempotency key; made by the server (UUIDv7) if missing")] = None
    name: Annotated[
        Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_no_control)] | None,
        Field(description="for people; the id if missing"),
    ] = None
    type: TaskType = TaskType.SYSTEM
    priority: _Priority = Priority.MED
    rank: Annotated[int, Field(ge=-(2**31), lt=2**31, description="order inside a priority, larger first")] = 0
    command: Annotated[
        Annotated[str | list[str], AfterValidator(_command)] | None,
        Field(description="text runs by /bin/sh -c, a list directly; ≤128 KiB"),
    ] = None
    entrypoint: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=500)]
        | None,
        Field(description="module:function, called with params; type ml only"),
    ] = None
    params: Annotated[dict[str, JsonValue], AfterValidator(_params)] = Field(default_factory=dict)
    reuse: Annotated[
        bool | None,
        Field(
            description="call the entrypoint in a process that made such calls before; they share its state; null: as "
            "the node is set for the priority"
        ),
    ] = None
    duration_ms: Annotated[
        int, Field(ge=0, le=86_400_000, description="simulated work, without command and entrypoint")
    ] = 100
    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    retry_delay_s: Annotated[float, Field(ge=0, le=86_400)] = 0.5
    timeout_s: Annotated[Annotated[float, Field(gt=0, le=DELAY_S_MAX)] | None, Field(description="of one attempt")] = (
        None
    )
    grace_s: Annotated[float, Field(ge=0, le=3_600, description="between TERM and KILL")] = 5
    delay_s: Annotated[float, Field(ge=0, le=DELAY_S_MAX, description="earliest start, from acceptance")] = 0
    after: Annotated[list[_Id], Field(max_length=1000)] = Field(default_factory=list)
    env: Annotated[dict[str, str], AfterValidator(_env)] = Field(default_factory=dict)
    cwd: Annotated[str, Field(max_length=4095), AfterValidator(_cwd)] | None = None
    cpus: Annotated[
        Annotated[float, Field(ge=0, le=4096)] | None, Field(description="held while it runs; 1 for ml, 0 for system")
    ] = None
    mem: Annotated[
        Annotated[int, Field(ge=resources.MEMORY_LEAST, le=resources.MEMORY_MOST)] | None,
        BeforeValidator(_mem),
        WithJsonSchema(_SIZE_SCHEMA),
    ] = None
    gpus: Annotated[
        Annotated[float, Field(ge=0, le=64), AfterValidator(_gpus)] | None,
        Field(description="a part of one, as 0.5, or whole ones; it gets CUDA_VISIBLE_DEVICES"),
    ] = None
    tags: Annotated[list[_Tag], Field(max_length=32)] = Field(default_factory=list)
    traceparent: Annotated[
        Annotated[str, Field(pattern=trace.TRACEPARENT), AfterValidator(_traceparent)] | None,
        Field(description="W3C trace context for the job's environment; no part of the content"),
    ] = None
    tracestate: Annotated[Annotated[str, Field(pattern=trace.TRACESTATE)] | None, Field(description="the same")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        check_together(self.__dict__)
        return self

    def identified(self) -> Task:
        """This very task, with an id made for it if it came without one; for whoever has just read it."""
        if self.id is None:
            self.__dict__["id"] = new_id()  # a copy would cost as much as reading the task
            self.__pydantic_fields_set__.add("id")
        return self

    def traced(self, context: Mapping[str, str]) -> Task:
        """This very task, in the trace of whoever brought it unless it names its own; `context`: see `trace.fields`."""
        if context and self.traceparent is None:
            self.__dict__.update(context)
            self.__pydantic_fields_set__.update(context)
        return self

    def named(self, task_id: str) -> Task:
        """The same task under another id, for a fraction of what `model_copy` takes; it shares what the fields hold,
        which nobody changes."""
        twin = Task.__new__(Task)
        object.__setattr__(twin, "__dict__", {**self.__dict__, "id": task_id})
        object.__setattr__(twin, "__pydantic_fields_set__", self.__pydantic_fields_set__ | {"id"})
        object.__setattr__(twin, "__pydantic_extra__", None)
        object.__setattr__(twin, "__pydantic_private__", None)
        return twin

    def spec(self) -> str:
        """The task as JSON without id and defaults: equal content gives equal specs, but for the trace."""
        return dump(self.model_dump(mode="json", exclude={"id"}, exclude_defaults=True))

    @property
    def demand(self) -> Demand | None:
        """What it holds while it runs; None: a worker alone."""
        return demand(self.type, self.cpus, self.mem, self.gpus)

    @classmethod
    def from_spec(cls, task_id: str, spec: str | bytes) -> Task:
        """The inverse of `spec`, for text that came out of the store; `TaskError` if a newer version wrote it."""
        return parse_task(spec).named(task_id)


class SpecWriter:
    """Specs of tasks that come one after the other, and are often alike but for their ids."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] | None = None  # of the last task, its id left out
        self._spec = ""

    def of(self, task: Task) -> str:
        """`task.spec()`."""
        fields = {**task.__dict__, "id": None}
        # In params, alone of all fields, what is equal may be written differently: 1, 1.0 and True.
        if task.params or fields != self._fields:
            self._spec = task.spec()
            self._fields = None if task.params else fields
        return self._spec


def check_together(given: Mapping[str, Any]) -> None:
    """Fields that are right each by itself, held against each other; `ValueError` in words for users."""
    get = given.get
    if get("entrypoint") is not None:
        if get("command") is not None:
            raise ValueError("command and entrypoint are both given; keep one")
        if get("type") is not TaskType.ML:
            raise ValueError("entrypoint needs type ml; add it, or use command")
    elif get("reuse"):
        raise ValueError("reuse needs an entrypoint; add it, or remove reuse")
    if get("tracestate") is not None and get("traceparent") is None:
        raise ValueError("tracestate is given without traceparent; add that, or remove it")
    if get("after") and get("id") in given["after"]:
        raise ValueError("after names the task itself; remove that id")


def demand(kind: TaskType, cpus: float | None, mem: int | None, gpus: float | None) -> Demand | None:
    """What a task of these fields holds while it runs; None: a worker alone."""
    if cpus is mem is gpus is None and kind is TaskType.SYSTEM:
        return None
    held = cpus if cpus is not None else 1.0 if kind is TaskType.ML else 0.0
    asked = Demand(resources.thousandths(held), mem or 0, resources.thousandths(gpus or 0.0))
    return asked if any(asked) else None


def is_same(one: str, other: str) -> bool:
    """Whether two specs have the same content."""
    return one == other or (_is_reduced(one + other) and _content(one) == _content(other))


def _content(spec: str) -> str:
    """Without its trace, and without a `reuse` of false, which was not written before it meant more than nothing."""
    if not _is_reduced(spec):
        return spec
    fields = json.loads(spec)
    if fields.get("reuse") is False:
        del fields["reuse"]
    return dump({name: value for name, value in fields.items() if name not in trace.FIELDS})


def _is_reduced(text: str) -> bool:
    """Whether there may be something to leave out."""
    return _TRACED in text or _NOT_REUSED in text


_TRACED = '"traceparent":'
_NOT_REUSED = '"reuse":false'
FIELDS = tuple(Task.model_fields)
_ONE = TypeAdapter(Task)
_DECODER = json.JSONDecoder()
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_PIECE_CHARS = 256 * 1024  # of an array that is read at once …
_PIECE_TASKS = 500  # … and what a longer one is cut into
_MANY = TypeAdapter(Annotated[list[Task], Field(max_length=BATCH_TASKS)])


def parse_task(data: str | bytes | Mapping[str, object]) -> Task:
    """One task from JSON text or a mapping of JSON values; raises `TaskError`."""
    try:
        return _ONE.validate_json(data if isinstance(data, str | bytes) else dump(data))
    except ValidationError as error:
        raise TaskError(*problems(cast("list[dict[str, Any]]", error.errors(include_url=False)))) from None
    except (TypeError, ValueError) as error:
        raise TaskError(Problem("", f"is no JSON: {error}")) from None


def parse_tasks(data: str | bytes) -> Iterator[Task]:
    """A JSON array of tasks; raises `TaskError` whose `index` is the first bad task's position.

    A long one is read in pieces, between which other threads run: the parser does not let them while it works.
    """
    count = 0
    for piece in pieces(data):
        tasks = parse_piece(piece, count)
        count += len(tasks)
        yield from tasks


def parse_piece(data: str | bytes, offset: int) -> list[Task]:
    """One of the `pieces`, before which there were `offset` tasks."""
    try:
        return _MANY.validate_json(data)
    except ValidationError as error:
        details = cast("list[dict[str, Any]]", error.errors(include_url=False))
        first = details[0]["loc"]
        if not first:
            raise TaskError(*problems(details)) from None
        index = int(first[0])
        own = [{**detail, "loc": detail["loc"][1:]} for detail in details if detail["loc"][:1] == (index,)]
        raise TaskError(*problems(own), index=offset + index) from None


def pieces(data: str | bytes) -> Iterator[str | bytes]:
    """Arrays of some of the array's elements each, in order; what is no array comes whole, to be refused."""
    if len(data) < _PIECE_CHARS:
        yield data
        return
    try:
        text = data if isinstance(data, str) else data.decode()
        ends = _ends(text)
    except (ValueError, RecursionError):
        yield data
        return
    if len(ends) > BATCH_TASKS:
        raise too_many()
    start = text.index("[") + 1
    for end in ends[_PIECE_TASKS - 1 : -1 : _PIECE_TASKS]:
        yield f"[{text[start:end]}]"
        start = text.index(",", end) + 1
    yield f"[{text[start : ends[-1]]}]"


def too_many() -> TaskError:
    return TaskError(Problem("", f"a batch holds at most {BATCH_TASKS} tasks; send the rest in another"))


def _ends(text: str) -> list[int]:
    """Where each element of an array ends; `ValueError` unless it is an array, and not an empty one."""
    position = _after_space(text, 0)
    if text[position : position + 1] != "[":
        raise ValueError("no array")
    ends: list[int] = []
    more = True
    while more:
        _, position = _DECODER.raw_decode(text, _after_space(text, position + 1))
        ends.append(position)
        position = _after_space(text, position)
        more = text[position : position + 1] == ","
    if text[position:].strip(" \t\r\n") != "]":
        raise ValueError("no end of the array")
    return ends


def _after_space(text: str, position: int) -> int:
    found = _NO_SPACE.search(text, position)
    return len(text) if found is None else found.start()


def problems(details: list[dict[str, Any]]) -> list[Problem]:
    """Pydantic's error list in the words of this project, one problem a field."""
    found: dict[str, Problem] = {}
    for detail in details:
        path = [str(part) for part in detail["loc"] if not _is_union_branch(part)]
        field = ".".join(path)
        found.setdefault(field, Problem(field, _message(detail, field)))
    return list(found.values())


def _is_union_branch(part: object) -> bool:
    """Pydantic names the member of a union inside the path (`command.str`); users never wrote that."""
    return isinstance(part, str) and (
        part in {"str", "function-after[_command(), union[str,list[str]]]"} or "[" in part
    )


def _message(detail: dict[str, Any], field: str) -> str:
    kind, given, ctx = detail["type"], detail.get("input"), detail.get("ctx", {})
    if field.split(".")[0] == "env":
        given = "***"  # may be a secret
    match kind:
        case "extra_forbidden":
            near = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.5)
            return (
                f"is not a field of a task; did you mean {near[0]}?"
                if near
                else (f"is not a field of a task; the fields are {', '.join(FIELDS)}")
            )
        case "value_error":
            return str(ctx.get("error", detail["msg"]))
        case "json_invalid":
            return f"is no valid JSON ({ctx.get('error', detail['msg'])}); send one JSON object"
        case "string_pattern_mismatch" if field == "id" or field.startswith("after"):
            return (
                f"{_shown(given)} is no id; use 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"
            )
        case "string_pattern_mismatch" if field == "entrypoint":
            return f"{_shown(given)} is no entrypoint; write module:function"
        case "enum":
            return f"{_shown(given)} is not known; use {ctx.get('expected')}"
        case _:
            subject, _, right = str(detail["msg"]).partition(" should ")  # "Input should be …", "List should have …"
            return f"{_shown(given)} is not allowed; it should {right}" if right else f"{_shown(given)}: {subject}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def dump(value: object) -> str:
    """JSON in its canonical form."""
    return _ENCODER.encode(value)
