"""`python -m pysched.ml.entrypoint module:function` calls a function as a job.

The JSON object in PYSCHED_PARAMS becomes the keyword arguments; the working folder is on the import path.
What the function returns is written as JSON to the path in PYSCHED_RESULT (printed, if that is not set),
through `PATH.part` and a rename.  A function that returns None leaves that path alone: it may have written
there itself.  A coroutine function is run to its end.  numpy numbers and arrays count as JSON numbers and
lists.

A failure leaves `{"error": {"type", "message", "traceback"}}` as the result; where the call itself could not be made,
the traceback is null.

Exit codes: 0; 2 when the call could not be made (no such module or attribute, not callable, arguments that
do not fit), with one line that says why; 1 when the function raised (traceback on stderr) or returned what
is not JSON or more than 64 KiB of it; the code of `sys.exit` when the function called that.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

RESULT_BYTES = 64 * 1024
_MESSAGE_CHARACTERS = 1_000
_TRACEBACK_CHARACTERS = 4_000  # of its end, where the fault is; at most 12 bytes of JSON each, so the result fits
_HEAP_TYPE = 1 << 9  # of a class that is not a constant of the program: made by a class statement
_SCAN: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
_NOT_USERS = frozenset(
    {__file__, importlib.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>"}
)


Keep = Callable[[bytes], bool]


class _RefusedError(Exception):
    """The call cannot be made; the message says why."""


def main(arguments: list[str], keep: Keep | None = None) -> int:
    """Run the entrypoint that `arguments` name; the exit code.  SystemExit of the function passes through.

    `keep(result)` may take the result in the place of the file.
    """
    try:
        target = _target(arguments)
        params = _params(os.environ.get("PYSCHED_PARAMS", ""))
        folder = os.getcwd()
        if folder not in sys.path and "" not in sys.path:
            sys.path.insert(0, folder)
        function = _resolve(target)
        _check_arguments(target, function, params)
    except _RefusedError as refusal:
        return refuse(str(refusal), keep)
    except Exception as error:  # the user's module failed while it was imported
        return _report(error, keep)
    try:
        value = function(**params)
        if inspect.iscoroutine(value):
            import asyncio  # a third of what this program would import

            value = asyncio.run(value)
    except Exception as error:
        return _report(error, keep)
    return _deliver(target, value, keep)


def _target(arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise _RefusedError(f"expected one argument, module:function, and got {len(arguments)}")
    module, colon, function = arguments[0].partition(":")
    if not (module and colon and function):
        raise _RefusedError(f"{arguments[0]!r} is no entrypoint; it should be module:function")
    return arguments[0]


def _params(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        params = _loaded(text)
    except ValueError as error:
        raise _RefusedError(f"PYSCHED_PARAMS is not JSON: {error}") from None
    if not isinstance(params, dict):
        raise _RefusedError(f"PYSCHED_PARAMS holds a JSON {type(params).__name__}; it should be an object")
    return params


def _loaded(text: str) -> Any:
    """As `json.loads`, which looks for blanks around it first, at some cost to a process that was just forked."""
    try:
        value, end = _SCAN(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else json.loads(text)


def _resolve(target: str) -> Callable[..., Any]:
    """The function that `target` names.  What the module itself raises while it is imported passes through."""
    name, _, path = target.partition(":")
    try:
        value: Any = sys.modules.get(name)
        if value is None:
            value = importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the named module or a parent of it: a module that lacks one of its own imports is another fault.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _RefusedError(
                f"{target}: no module named {error.name!r} in {os.getcwd()} or among the installed packages"
            ) from None
        raise
    except ValueError as error:  # e.g. a module whose __spec__ is None
        raise _RefusedError(f"{target}: cannot import {name!r}: {error}") from None
    walked = name
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise _RefusedError(f"{target}: {walked!r} has no attribute {part!r}") from None
        walked = f"{walked}.{part}"
    if not callable(value):
        raise _RefusedError(f"{target}: {walked!r} is not callable, it is of type {type(value).__name__}")
    return value  # type: ignore[no-any-return]


def _check_arguments(target: str, function: Callable[..., Any], params: dict[str, Any]) -> None:
    """By the names of `params` alone."""
    global _checked
    names = tuple(params)
    if _checked is None or _checked[0] is not function or _checked[1] != names:
        _hold_against(target, function, params)
        _checked = function, names


_checked: tuple[Callable[..., Any], tuple[str, ...]] | None = None  # what was found to fit the last time


def _hold_against(target: str, function: Callable[..., Any], params: dict[str, Any]) -> None:
    if _plainly_fits(function, params) or _tells_no_signature(function):
        return
    path = target.partition(":")[2]
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions tell no signature; the call itself will judge
        return
    try:
        signature.bind(**params)
    except TypeError as error:
        raise _RefusedError(f"{target}: params do not fit {path}{signature}: {error}") from None


def _plainly_fits(function: Callable[..., Any], params: dict[str, Any]) -> bool:
    """Whether a plain function surely takes `params`; a signature is ten times as dear, and needed for all others."""
    if type(function) is not types.FunctionType or hasattr(function, "__wrapped__"):
        return False
    code = function.__code__
    if code.co_posonlyargcount:
        return False
    positional = code.co_varnames[: code.co_argcount]
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    optional = {*positional[code.co_argcount - len(function.__defaults__ or ()) :], *(function.__kwdefaults__ or ())}
    takes_any = bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return all(name in params or name in optional for name in named) and (
        takes_any or all(map(named.__contains__, params))
    )


def _tells_no_signature(function: Callable[..., Any]) -> bool:
    """Whether it is surely one of C that `inspect.signature` would look at in vain; the call itself will judge."""
    kind = type(function)
    in_c = kind is types.BuiltinFunctionType or (kind is type and not function.__flags__ & _HEAP_TYPE)  # type: ignore[attr-defined]
    return in_c and getattr(function, "__text_signature__", None) is None


def _deliver(target: str, value: object, keep: Keep | None) -> int:
    try:
        text = _ENCODE(value)
        data = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        return _unfit(f"{target}: the returned {type(value).__name__} is not JSON: {error}", keep)
    if len(data) > RESULT_BYTES:
        return _unfit(
            f"{target}: the result is {len(data)} bytes of JSON, more than {RESULT_BYTES}; write it to a file and "
            "return the path",
            keep,
        )
    if keep is not None and value is not None and keep(data):
        return 0
    path = os.environ.get("PYSCHED_RESULT")
    if not path:
        print(text, flush=True)
    elif value is not None:
        return leave(target, path, data)
    return 0


def leave(target: str, path: str, data: bytes) -> int:
    """Write a result to its file; the exit code."""
    try:
        _write(path, data)
    except OSError as error:
        return _complain(f"{target}: cannot write the result to {path}: {error.strerror}", 1)
    return 0


def _write(path: str, data: bytes) -> None:
    part = f"{path}.part"
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(file, data) :]
    finally:
        os.close(file)
    os.replace(part, path)


def _record(kind: str, message: str, trace: str | None, keep: Keep | None) -> None:
    """Leave the error as the result.  That it also stands on stderr is what counts if this cannot be written."""
    path = os.environ.get("PYSCHED_RESULT")
    if path:
        error = {
            "type": kind,
            "message": _storable(message[:_MESSAGE_CHARACTERS]),
            "traceback": None if trace is None else _storable(trace[-_TRACEBACK_CHARACTERS:]),
        }
        data = json.dumps({"error": error}).encode()
        if not (keep is not None and keep(data)):
            with contextlib.suppress(OSError):
                _write(path, data)


def _storable(text: str) -> str:
    """Without what no text of a database holds: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _plain(value: Any) -> object:
    """numpy scalars and arrays, known by their `tolist`, so that numpy need not be imported."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain).encode


def _report(error: Exception, keep: Keep | None) -> int:
    """Print the traceback of `error` from where the user's code begins; the exit code."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in _NOT_USERS:
        frames = frames.tb_next
    trace = "".join(traceback.format_exception(type(error), error, frames))
    sys.stderr.write(trace)
    _record(type(error).__name__, _message(error), trace, keep)
    return 1


def _message(error: Exception) -> str:
    try:
        return str(error)
    except Exception as second:  # the user's own class
        return f"<its message cannot be had: {type(second).__name__}>"


def refuse(message: str, keep: Keep | None = None) -> int:
    """Say why the call cannot be made; the exit code."""
    _record("EntrypointError", message, None, keep)
    return _complain(message, 2)


def _unfit(message: str, keep: Keep | None) -> int:
    _record("ResultError", message, None, keep)
    return _complain(message, 1)


def _complain(message: str, code: int) -> int:
    print("entrypoint:", " ".join(message.split()), file=sys.stderr)
    return code


def _run() -> NoReturn:
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        sys.path[0] = os.getcwd()  # run by path: our own programs are no top-level modules of the user's
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    _run()
