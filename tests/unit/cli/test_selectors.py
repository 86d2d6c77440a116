"""How people say which tasks they mean."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from pysched.cli import recent, selectors
from pysched.cli.session import Session
from pysched.client import Client
from pysched.client.wire import Request, Response
from pysched.errors import InputError, NotFoundError
from tests.unit.client.test_blocking import Scripted, answer, problem

URL = "http://127.0.0.1:1"


class Known:
    """A server that has these tasks, newest first."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        if request.path == "/tasks":
            tasks = [
                {"id": each, "name": f"name-{each}"}
                for each in self.ids
                if each.startswith(str(request.params.get("id", "")))
            ]
            return answer(200, {"tasks": tasks, "next": None})
        task_id = request.path.removeprefix("/tasks/")
        return answer(200, {"id": task_id}) if task_id in self.ids else problem(404, "no such task")(request)


def session(server: Known) -> Session:
    found = Session(url=URL, token=None, home=None, form="table")
    found.client = Client(URL, transport=Scripted(server))
    return found


def ids(server: Known, *words: str) -> list[str] | None:
    return selectors.select(session(server), words).ids


def test_ids_and_beginnings() -> None:
    server = Known("abc-1", "abd-2", "ab")
    assert ids(server, "abc-1", "abd", "ab", "abc") == ["abc-1", "abd-2", "ab"]


def test_an_id_that_is_whole_costs_no_look() -> None:
    server = Known()
    assert ids(server, "01a20d3f-5236-7beb-9d47-9f84f5b31974") == ["01a20d3f-5236-7beb-9d47-9f84f5b31974"]
    assert server.requests == []


def test_a_shortened_id() -> None:
    assert ids(Known("01a20d3f-1-aaaaaa", "01a20d3f-1-bbbbbb"), "01a20d3f…bbbbbb") == ["01a20d3f-1-bbbbbb"]


def test_a_beginning_of_two_is_none() -> None:
    with pytest.raises(InputError, match=r"ab: begins more than one id \(abc, abd, …\); write more of it"):
        ids(Known("abd", "abc"), "ab")


def test_what_is_not_there_is_spelt_right() -> None:
    with pytest.raises(NotFoundError, match="train-8: no such task; did you mean train-7"):
        ids(Known("train-7", "x"), "train-8")
    with pytest.raises(NotFoundError, match="scheduler ls lists"):
        ids(Known("x"), "train-8")
    with pytest.raises(InputError, match="is no id"):
        ids(Known(), "../x")


def test_rows_of_the_last_listing() -> None:
    recent.remember(URL, "listed", ["a", "b", "c", "d"])
    assert ids(Known(), "%2") == ["b"]
    assert ids(Known(), "%3-4,1", "%1") == ["c", "d", "a"]
    for word in ("%5", "%6", "%99", "%0", "%3-9", "%6-9"):
        with pytest.raises(NotFoundError, match="the last listing has 4 rows"):
            ids(Known(), word)
    with pytest.raises(NotFoundError):  # at once
        ids(Known(), "%1-999999999999")
    with pytest.raises(InputError, match="write %2-4"):
        ids(Known(), "%4-2")
    for word in ("%", "%x", "%1-", "%-3"):
        with pytest.raises(InputError, match="is no row"):
            ids(Known(), word)


def test_the_last_submission() -> None:
    with pytest.raises(NotFoundError, match="nothing was submitted from here"):
        ids(Known(), "last")
    recent.remember(URL, "submitted", ["a", "b"])
    recent.remember("http://elsewhere", "submitted", ["c"])
    assert ids(Known(), "last") == ["a", "b"]
    with pytest.raises(InputError, match="more than one"):
        selectors.one(session(Known()), "last")


def test_a_broken_memory_is_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    recent.remember(URL, "submitted", ["a"])
    path = recent._path()
    for text in ("", "[]", '{"http://127.0.0.1:1": 5}', "\xff"):
        path.write_text(text, encoding="latin-1")
        assert recent.recall(URL, "submitted") == []


def test_all_is_what_the_command_says() -> None:
    chosen = selectors.select(session(Known()), ("all",), everything={"status": "failed"})
    assert (chosen.ids, chosen.filters) == (None, {"status": "failed"})
    with pytest.raises(InputError, match="all: is not possible here"):
        ids(Known(), "all")


def test_filters() -> None:
    found = selectors.filters(["status=failed,Running", "tag=a,b", "tag=c", "priority=high", "type=ML", "name=x=y"])
    assert found == {
        "status": ["failed", "running"], "tag": ["a", "b", "c"], "priority": ["HIGH"], "type": "ml", "name": "x=y",
    }  # fmt: skip
    since = selectors.filters(["finished-since=2026-01-01T00:00Z"])
    assert since == {"finished_since": datetime(2026, 1, 1, tzinfo=timezone.utc)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sttus=failed"], "'sttus' is no filter; did you mean status?"),
        (["zzz=1"], "the filters are status, "),
        (["status=faild"], "did you mean status=failed?"),
        (["status=zzz"], "use blocked, scheduled, "),
        (["priority=hihg"], "did you mean priority=HIGH?"),
        (["since=5x"], "since=5x: '5x' is no time; write how long ago, as 2h"),
        (["id="], "has no value; write id=VALUE"),
        (["name=a", "name=b"], "is given twice"),
        (["status=failed", "x"], "x: ids and filters are mixed"),
    ],
)
def test_a_filter_that_is_none_says_what_would_be(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        selectors.select(session(Known()), words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
