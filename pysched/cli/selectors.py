"""Which tasks a command is about, in the words that people type.

::

    SELECTOR   = ID | PREFIX | FIRST…LAST      an id, its beginning, or as `ls` shortens it, if one task alone fits
               | %N | %N-M | %N,M-K            rows of the last `ls`
               | last                          what was submitted last from here
               | all                           all on which the command can act
               | KEY=VALUE …                   all that fit; several must all hold
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, cast

import click

from pysched.cli import recent, units
from pysched.cli.session import Session
from pysched.client.calls import Filters
from pysched.errors import InputError, NotFoundError
from pysched.ids import is_valid_id
from pysched.states import Priority, State, TaskType

HELP = "an id or its beginning, %N or %N-M (rows of the last ls), last, all, or filters such as status=failed tag=x"
EPILOG = f"SELECTOR is {HELP}."
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_ROWS = re.compile(r"%\d+(-\d+)?(,\d+(-\d+)?)*\Z")
_SHORT = re.compile(r"(?P<first>[^…]+)…(?P<last>[^…]+)\Z")
_WORDS: dict[str, Sequence[str]] = {
    "status": [state.value for state in State],
    "priority": [priority.name for priority in Priority],
    "type": [kind.value for kind in TaskType],
}
_TIMES = {
    "since": "submitted_since",
    "until": "submitted_until",
    "finished-since": "finished_since",
    "finished-until": "finished_until",
}
_KEYS = (*_WORDS, "tag", "id", "name", "node", "text", *_TIMES)


@dataclass(frozen=True, slots=True)
class Selection:
    """Ids, in order; or filters, if `ids` is None."""

    ids: list[str] | None
    filters: Filters


def ids_argument(*, required: bool = True, several: bool = True) -> Callable[[Any], Any]:
    """The argument of a command that takes selectors."""
    return click.argument(
        "words" if several else "word",
        nargs=-1 if several else 1,
        required=required,
        shell_complete=complete,
        metavar="SELECTOR..." if several else "SELECTOR",
    )


def select(session: Session, words: Sequence[str], *, everything: Filters | None = None) -> Selection:
    """What `words` mean; `everything` is what `all` means to the command, None if it means nothing."""
    filtering = [word for word in words if "=" in word]
    if words == ("all",) and everything is not None:
        return Selection(None, everything)
    if filtering:
        if len(filtering) < len(words):
            other = next(word for word in words if "=" not in word)
            raise InputError(f"{other}: ids and filters are mixed; give either, as in status=failed tag=x")
        return Selection(None, filters(filtering))
    ids = [task_id for word in words for task_id in _ids(session, word)]
    return Selection([*dict.fromkeys(ids)], {})


def one(session: Session, word: str) -> str:
    """The one task that `word` means."""
    chosen = select(session, (word,))
    ids = chosen.ids
    if ids is None:
        ids = [task["id"] for task in session.client.list(limit=2, **chosen.filters).tasks]
    if not ids:
        raise NotFoundError(f"no task fits {word}; scheduler ls lists what there is")
    if len(ids) > 1:
        raise InputError(f"{word} means more than one task; name one")
    return ids[0]


def expand(session: Session, chosen: Selection) -> list[str]:
    """The ids, also of filters; oldest first, as they were submitted."""
    if chosen.ids is not None:
        return chosen.ids
    return [task["id"] for task in session.client.tasks(**chosen.filters)][::-1]


def filters(words: Sequence[str]) -> Filters:
    """Of `KEY=VALUE …`; values of status, priority and tag may be several, with commas."""
    found: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        key = key.strip().lower().replace("_", "-")
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            right = f"did you mean {near[0]}?" if near else f"the filters are {', '.join(_KEYS)}"
            raise InputError(f"{word}: {key!r} is no filter; {right}")
        if not value:
            raise InputError(f"{word}: has no value; write {key}=VALUE")
        name = _TIMES.get(key, key)
        if name in found and name != "tag":
            raise InputError(f"{word}: {key} is given twice; write {key}=A,B where one of several will do")
        if key in _TIMES:
            found[name] = _moment(word, value)
        elif key in {"status", "priority", "tag"}:
            found[name] = [*found.get(name, []), *(_word(key, each.strip(), word) for each in value.split(","))]
        else:
            found[name] = _word(key, value, word)
    return cast("Filters", found)


def _moment(word: str, value: str) -> datetime:
    try:
        return units.parse_moment(value, datetime.now(timezone.utc))
    except ValueError as error:
        raise InputError(f"{word}: {error}") from None


def _word(key: str, value: str, word: str) -> str:
    """The value in the server's spelling."""
    known = _WORDS.get(key)
    if known is None:
        return value
    for each in known:
        if each.lower() == value.lower():
            return each
    near = difflib.get_close_matches(value.lower(), [each.lower() for each in known], n=1, cutoff=0.5)
    right = f"did you mean {key}={next(each for each in known if each.lower() == near[0])}?" if near else ""
    raise InputError(f"{word}: {value!r} is no {key}; {right or 'use ' + ', '.join(known)}")


def _ids(session: Session, word: str) -> list[str]:
    if word == "last":
        ids = recent.recall(session.client.url, "submitted")
        if not ids:
            raise NotFoundError("last: nothing was submitted from here yet; name an id")
        return ids
    if word == "all":
        raise InputError("all: is not possible here; name ids, or filters such as status=failed")
    if word.startswith("%"):
        return _rows(session, word)
    return [_resolved(session, word)]


def _rows(session: Session, word: str) -> list[str]:
    if not _ROWS.match(word):
        raise InputError(f"{word}: is no row of a listing; write %3, %3-7 or %3,5-7")
    listed = recent.recall(session.client.url, "listed")
    ids = []
    for part in word[1:].split(","):
        first, _, last = part.partition("-")
        start, end = int(first), int(last or first)
        if start > end:
            raise InputError(f"{word}: ends before it begins; write %{end}-{start}")
        if not 1 <= start <= end <= len(listed):
            rows = "1 row" if len(listed) == 1 else f"{len(listed) or 'no'} rows"
            raise NotFoundError(f"{word}: the last listing has {rows}; scheduler ls makes a new one")
        ids += listed[start - 1 : end]
    return ids


def _resolved(session: Session, word: str) -> str:
    """The id that is, or begins with, `word`."""
    if _UUID.match(word):
        return word
    short = _SHORT.match(word)
    if not short:
        if not is_valid_id(word):
            raise InputError(f"{word!r} is no id; give {HELP}")
        try:
            return session.client.get(word)["id"]
        except NotFoundError:
            pass
    first, last = (short["first"], short["last"]) if short else (word, "")
    fitting: list[str] = []
    for task in session.client.tasks(id=first):
        if task["id"].endswith(last):
            fitting.append(task["id"])
            if len(fitting) > 1:
                raise InputError(f"{word}: begins more than one id ({fitting[1]}, {fitting[0]}, …); write more of it")
    if not fitting:
        raise NotFoundError(f"{word}: no such task{_nearest(session, word)}")
    return fitting[0]


def _nearest(session: Session, word: str) -> str:
    """The id of a recent task that is spelt like it, or whose name is."""
    names: dict[str, str] = {}
    for task in session.client.list(limit=500).tasks:
        names.setdefault(task["name"], task["id"])
        names[task["id"]] = task["id"]
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f"; did you mean {names[near[0]]}?" if near else "; scheduler ls lists what there is"


def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Ids for the shell to offer; silent where the server is not reached at once."""
    from pysched.client import Client
    from pysched.errors import PyschedError

    words = ["last", "all", *(f"{key}=" for key in _KEYS)]
    if "=" in incomplete:
        key, _, value = incomplete.partition("=")
        return [f"{key}={each}" for each in _WORDS.get(key, []) if each.lower().startswith(value.lower())]
    where = {name: ctx.params.get(name) for name in ("url", "token", "home")}
    ids: list[str] = []
    try:
        with Client(**where, timeout_s=1, retries=0) as client:
            ids = [task["id"] for task in client.list(limit=50, id=incomplete or None).tasks]
    except PyschedError:
        pass
    return [word for word in [*ids, *words] if word.startswith(incomplete)]
