"""Plain ends: what goes the short way, and that it comes to the same as the long one, byte by byte and row by row."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pysched._core import EXITED, AttemptTable, Core, Event, PlainEnds
from pysched.engine.attempts import Attempts, Held
from pysched.engine.reaper import Reaper
from pysched.errors import DatabaseUnreachable
from pysched.executors.files import LogFolder, check_result, read_result, result_texts
from pysched.executors.launch import Launcher, inherited
from pysched.executors.zygote import Zygote
from pysched.model import Claim, NodeInfo, Priority, TaskType
from pysched.recorder.done import CompletedFolder
from pysched.recorder.recorder import Deliverer, Recorder
from pysched.recorder.spool import Spool
from pysched.store.store import Store
from pysched.task import Task
from tests.database import NewDatabase
from tests.integration.store_driver import DEADLINE_S, Node, accept, task

TABLES: Mapping[str, str] = {
    # What says when the row was written differs between two databases.
    "tasks": """SELECT to_jsonb(t) - 'ready_at' - CASE WHEN reason = 'dependency' THEN 'finished_at' ELSE '' END
        FROM pysched.tasks AS t ORDER BY id""",
    "attempts": "SELECT to_jsonb(a) FROM pysched.attempts AS a ORDER BY task_id, attempt",
    "deliveries": "SELECT to_jsonb(d) FROM pysched.deliveries AS d",
    "undelivered": "SELECT to_jsonb(u) FROM pysched.undelivered AS u ORDER BY task_id",
    "tallies": "SELECT to_jsonb(t) FROM pysched.tallies AS t ORDER BY source, kind, priority",
}


def _table(folder: Path) -> AttemptTable:
    path, guard = str(folder / "attempts.table"), b"a guard of tests"
    AttemptTable.begin(path, guard)
    return AttemptTable(path, guard, rows=1_000)


class Here:
    """A core, and what an attempt goes through on its way to it and from it."""

    def __init__(self, folder: Path, *, warm: bool = False) -> None:
        logs = LogFolder(folder / "logs")
        logs.prepare()
        table = _table(folder) if warm else None
        self.core = Core(lanes=2, workers=8, table=table)
        self.attempts = Attempts()
        self.node = uuid.uuid4()
        self.reaper = Reaper(
            self.core, self.attempts, record=lambda started, outcomes, plain: None, room=lambda: None, due=lambda: None,
            read_result=read_result, check_result=check_result, result_texts=result_texts,
        )  # fmt: skip
        self._launcher = Launcher(node=str(self.node), work=folder, logs=logs, environ={}, warm=warm)
        self._zygote = Zygote(
            lanes=2, preload=[], environ=inherited(os.environ), table=str(folder / "attempts.table"),
            meet=self.core.meet_zygote, awaited_s=self.core.awaits_zygote_s,
        ) if warm else None  # fmt: skip
        if self._zygote is not None:
            self._zygote.start()

    def run(self, claims: Sequence[Claim]) -> tuple[list[Event], PlainEnds]:
        """Run them as first attempts of this node, to the end of the last: all events, and the plain ends."""
        launches = []
        for claim in claims:
            of = Task.from_spec(claim.key.id, claim.spec)
            held = Held(claim, of, self._launcher.prepare(claim.key, of), plain=claim.key.attempt == 1)
            launches.append(held.launch(self.attempts.add(held)))
        self.core.submit(launches)
        events: list[Event] = []
        plain = PlainEnds()
        deadline = time.monotonic() + DEADLINE_S
        while len(plain) + sum(event.kind == EXITED for event in events) < len(claims):
            assert time.monotonic() < deadline, "attempts do not end"
            more, ends = self.core.poll_ends(1.0, self.attempts.held, result_texts)
            events += more
            plain.take_in(ends)
        return events, plain

    def close(self) -> None:
        if self._zygote is not None:
            self._zygote.stop()
        self.core.close()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    found = Here(tmp_path)
    yield found
    found.close()


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Here]:
    """With a zygote, so that calls are reused."""
    found = Here(tmp_path, warm=True)
    yield found
    found.close()


def _run_one(here: Here, store: Store, of: Task) -> tuple[list[Event], PlainEnds]:
    accept(store, of)
    return here.run(Node(store).claim())


def _shell(text: str, **fields: Any) -> Task:
    return task("t", command=["/bin/sh", "-c", text], **fields)


@pytest.mark.parametrize(
    "of",
    [
        _shell("exit 0"),
        _shell("echo words; exit 7", max_retries=0),
        _shell("exit 255", max_retries=0, name="a name, of its own"),
        task("t", type=TaskType.ML, command=["/bin/true"], priority=Priority.LOW),
    ],
    ids=["success", "failure for good", "name", "ml"],
)
def test_an_ordinary_end_is_plain(here: Here, store: Store, of: Task) -> None:
    events, plain = _run_one(here, store, of)
    assert len(plain) == 1
    assert next(iter(plain.keys())).id == "t"
    assert not any(event.kind == EXITED for event in events)


@pytest.mark.parametrize(
    "of",
    [
        _shell("exit 3", max_retries=1),
        _shell("kill -KILL $$", max_retries=0),
        _shell("exit 0", name='a "name"'),
        _shell("exit 0", name="ñame"),
        _shell('echo 1 > "$PYSCHED_RESULT"'),
        _shell('echo 1 > "$PYSCHED_PROGRESS"'),
        _shell("exec sleep 60", timeout_s=0.05, grace_s=0.0, max_retries=0),
    ],
    ids=["to be tried again", "signal", "quotes", "not ASCII", "result", "progress", "timeout"],
)
def test_any_other_is_not(here: Here, store: Store, of: Task) -> None:
    events, plain = _run_one(here, store, of)
    assert not plain
    assert [event.kind for event in events][-1] == EXITED


def test_a_later_attempt_is_not(here: Here, store: Store, store_url: str) -> None:
    accept(store, _shell("exit 0"))
    with psycopg.connect(store_url, autocommit=True) as conn:
        conn.execute("UPDATE pysched.tasks SET attempts = 1")
    events, plain = here.run(Node(store).claim())
    assert not plain
    assert events


def _batch(draw: random.Random) -> list[Task]:
    """Tasks of all kinds whose ends are plain, and some that wait for them."""
    tasks = []
    for number in range(120):
        code = draw.choice([0, 0, 0, 1, 7, 255])
        name = draw.choice([None, "a name", "~!@#$%^&*()[]{};:'<>,./?"])
        tasks.append(
            task(
                f"{draw.choice('aZb0')}{draw.choice(['', '.', '-', '_'])}{number}",
                command=["/bin/sh", "-c", f"exit {code}"], max_retries=0, name=name,
                priority=draw.choice(list(Priority)), type=draw.choice(list(TaskType)),
            )
        )  # fmt: skip
    waiting = [task(f"w{number}", after=[draw.choice(tasks).id]) for number in range(20)]
    wide = task("wide", after=[each.id for each in draw.sample(tasks, 50)])
    return [*tasks, *waiting, wide, task("last", after=["wide"])]


def _prepare(url: str, store: Store, tasks: Sequence[Task], times: Sequence[datetime], info: NodeInfo) -> list[Claim]:
    """The tasks accepted at given times, and what of them is ready claimed."""
    accept(store, *tasks)
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor() as cursor:
        cursor.executemany(
            "UPDATE pysched.tasks SET submitted_at = %s WHERE id = %s",
            [(moment, each.id) for moment, each in zip(times, tasks, strict=True)],
        )
    store.register(info, 3600.0)
    return store.claim(info.incarnation, lowest=Priority.LOW, limit=1_000)


def _rows(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as conn:
        return {name: conn.execute(query).fetchall() for name, query in TABLES.items()}


@pytest.mark.parametrize("seed", range(3))
def test_both_ways_come_to_the_same(seed: int, here: Here, new_database: NewDatabase, tmp_path: Path) -> None:
    draw = random.Random(seed)
    _assert_the_same(_batch(draw), draw, here, new_database, tmp_path)


VALUES: Sequence[object] = (
    None, True, 0, -1.5, 1e300, "", "words", 'a "quoted" \\ one', "ñ\u2028😀", [], {},
    {"b": [1, {"c": None}], "a": "é"}, "x" * 900,
)  # fmt: skip


def test_results_that_come_with_the_end_go_the_short_way(warm: Here, new_database: NewDatabase, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(
        "def same(value):\n    return value\ndef fails(text):\n    raise LookupError(text)\n"
    )
    calls = [*(("calls:same", {"value": value}) for value in VALUES), ("calls:fails", {"text": "ñ"})]
    tasks = [
        task(
            f"c{number}", type=TaskType.ML, entrypoint=entrypoint, params=params, reuse=True, cwd=str(tmp_path),
            max_retries=0,
        )
        for number, (entrypoint, params) in enumerate(calls)
    ]  # fmt: skip
    _assert_the_same(tasks, random.Random(1), warm, new_database, tmp_path)


def test_a_result_that_is_refused_does_not(warm: Here, store: Store, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text('def says():\n    return "a\\0b"\n')
    of = task("t", type=TaskType.ML, entrypoint="calls:says", reuse=True, cwd=str(tmp_path), max_retries=0)
    events, plain = _run_one(warm, store, of)
    assert not plain
    assert [event.kind for event in events][-1] == EXITED


def test_the_texts_of_a_result() -> None:
    assert result_texts(b'{"a":[1,"\xc3\xb1\\n"]}') == (
        '{"a":[1,"\\u00f1\\n"]}',
        b'{"a": [1, "\xc3\xb1\\n"]}',
    )
    for data in (b"", b"{", b"NaN", b"1e999", b'"\\u0000"', b'"\\ud800"', b"1" * 70_000):
        assert result_texts(data) is None


def _assert_the_same(
    tasks: Sequence[Task], draw: random.Random, here: Here, new_database: NewDatabase, tmp_path: Path
) -> None:
    count = sum(not each.after for each in tasks)
    now = datetime.now(timezone.utc)
    # Also after the start, as by another clock.
    times = [now + timedelta(microseconds=draw.randrange(-(10 ** draw.randrange(1, 15)), 10**8)) for _ in tasks]
    home = uuid.uuid4()
    info = NodeInfo(incarnation=here.node, home=home, host="host", pid=1, workers=4, lanes=2, version="1")
    with (
        new_database() as url, new_database() as other_url, Store(url) as store, Store(other_url) as other,
    ):  # fmt: skip
        claims = _prepare(url, store, tasks, times, info)
        assert [claim.key for claim in _prepare(other_url, other, tasks, times, info)] == [c.key for c in claims]
        _, plain = here.run(claims)
        assert len(plain) == len(claims) == count

        number = store.finish_plain(plain, node=here.node, home=home)
        assert number is not None
        records, disowned = other.finish(here.reaper.outcomes(plain), home=home)
        assert disowned == []
        assert _rows(url) == _rows(other_url)

        for folder in (one := tmp_path / "one", two := tmp_path / "two"):
            folder.mkdir()
        plain.write_done(one, str(here.node))
        CompletedFolder(two).write(records)
        assert _contents(one) == _contents(two)

        outcomes = here.reaper.outcomes(plain)
        assert plain.waits_ms() == [round(outcome.exit.wait_ms or 0) for outcome in outcomes]
        assert sorted(plain.runs_ms()) == sorted(record.run_ms for record in records if record.run_ms is not None)

        store.delivered_batches([(number, len(plain))])
        other.delivered(records)
        assert _rows(url)["deliveries"] == _rows(other_url)["deliveries"] == []


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_that_cannot_be_written_is_named(here: Here, store: Store, tmp_path: Path) -> None:
    _, plain = _run_one(here, store, _shell("exit 0"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        plain.write_done(tmp_path / "nowhere", str(here.node))
    (tmp_path / "t.done").mkdir()
    with pytest.raises(IsADirectoryError, match=r"t\.done"):
        plain.write_done(tmp_path, str(here.node))
    assert not list(tmp_path.glob(".*.tmp"))


class TestOneThatIsLost:
    """One attempt of a batch is not this node's any more."""

    @pytest.fixture
    def plain(self, here: Here, store: Store) -> PlainEnds:
        plain = _run_some(here, store)
        lost = next(outcome for outcome in here.reaper.outcomes(plain) if outcome.key.id == "t3")
        records, disowned = store.finish([lost], home=uuid.uuid4())
        assert disowned == []
        store.delivered(records)
        return plain

    def test_nothing_of_its_batch_is_recorded(self, here: Here, store: Store, store_url: str, plain: PlainEnds) -> None:
        before = _rows(store_url)
        assert store.finish_plain(plain, node=here.node, home=uuid.uuid4()) is None
        assert _rows(store_url) == before

    def test_it_may_be_taken_by_another_node(self, store: Store, store_url: str, plain: PlainEnds) -> None:
        before = _rows(store_url)
        assert store.finish_plain(plain, node=uuid.uuid4(), home=uuid.uuid4()) is None
        assert _rows(store_url) == before

    def test_nor_if_one_is_said_to_have_begun_at_another_time(self, here: Here, store: Store, store_url: str) -> None:
        plain = _run_some(here, store)
        with psycopg.connect(store_url, autocommit=True) as conn:
            conn.execute("UPDATE pysched.tasks SET started_at = now() - interval '1 hour' WHERE id = 't2'")
        before = _rows(store_url)
        assert store.finish_plain(plain, node=here.node, home=uuid.uuid4()) is None
        assert _rows(store_url) == before

    def test_the_others_are_recorded_the_long_way(
        self, here: Here, store: Store, store_url: str, plain: PlainEnds, tmp_path: Path
    ) -> None:
        with recording(here, store, tmp_path) as recorder:
            recorder.put([], [], plain)
        _assert_all_recorded(store_url, tmp_path)


@contextmanager
def recording(
    here: Here, store: Store, folder: Path, finish_plain: Callable[[PlainEnds], int | None] | None = None
) -> Iterator[Recorder]:
    """A recorder wired as in a node; at the end of the block it and its deliverer have done what they can."""
    home = uuid.uuid4()
    spool, completed = Spool(folder / "spool"), CompletedFolder(folder / "completed")
    spool.prepare()
    completed.prepare()
    deliverer = Deliverer(
        write=completed.write,
        undelivered=lambda limit: store.undelivered(home, limit),
        delivered=store.delivered,
        write_plain=lambda ends: ends.write_done(completed.path, str(here.node)),
        delivered_batches=store.delivered_batches,
        backlog=lambda: False,
    )
    recorder = Recorder(
        spool,
        start=store.start,
        finish=lambda outcomes: store.finish(outcomes, home=home),
        finish_plain=finish_plain or (lambda ends: store.finish_plain(ends, node=here.node, home=home)),
        outcomes=here.reaper.outcomes,
        deliver=deliverer.put,
        deliver_plain=deliverer.put_plain,
        finished=lambda outcomes: None,
        disowned=lambda keys: None,
        backlog=lambda: False,
    )
    recorder.replay()
    for stage in (deliverer, recorder):
        stage.start()
    try:
        yield recorder
    finally:
        recorder.stop()
        deliverer.stop()


def _run_some(here: Here, store: Store) -> PlainEnds:
    """Five of them, t0 … t4."""
    accept(store, *(task(f"t{number}", command=["/bin/true"]) for number in range(5)))
    info = NodeInfo(incarnation=here.node, home=uuid.uuid4(), host="host", pid=1, workers=4, lanes=2, version="1")
    store.register(info, 3600.0)
    _, plain = here.run(store.claim(here.node, lowest=Priority.LOW, limit=10))
    assert len(plain) == 5
    return plain


def _assert_all_recorded(url: str, folder: Path) -> None:
    """Once each, nothing is owed, and each has its file."""
    rows = _rows(url)
    names = [f"t{number}" for number in range(5)]
    assert [row["task_id"] for (row,) in rows["attempts"]] == names
    assert [(row["id"], row["state"], row["attempts"]) for (row,) in rows["tasks"]] == [
        (name, "succeeded", 1) for name in names
    ]
    assert rows["deliveries"] == rows["undelivered"] == []
    assert sorted(path.name for path in (folder / "completed").iterdir()) == [f"{name}.done" for name in names]


class TestTheRecorder:
    def test_takes_the_short_way(self, here: Here, store: Store, store_url: str, tmp_path: Path) -> None:
        plain = _run_some(here, store)
        with recording(here, store, tmp_path) as recorder:
            recorder.put([], [], plain)
        _assert_all_recorded(store_url, tmp_path)

    def test_keeps_plain_ends_while_the_store_does_not_answer(
        self, here: Here, store: Store, store_url: str, tmp_path: Path
    ) -> None:
        plain = _run_some(here, store)
        tried = threading.Event()

        def away(ends: object) -> int | None:
            tried.set()
            raise DatabaseUnreachable("away")

        with recording(here, _Away(store), tmp_path, away) as recorder:  # type: ignore[arg-type]
            recorder.put([], [], plain)
            assert tried.wait(DEADLINE_S)
            assert recorder.pending() == set(plain.keys())
        assert _rows(store_url)["attempts"] == []
        with recording(here, store, tmp_path):
            pass
        _assert_all_recorded(store_url, tmp_path)

    def test_records_once_what_was_committed_when_the_answer_was_lost(
        self, here: Here, store: Store, store_url: str, tmp_path: Path
    ) -> None:
        plain = _run_some(here, store)
        home = uuid.uuid4()

        def lose_answer(ends: PlainEnds) -> int | None:
            assert store.finish_plain(ends, node=here.node, home=home) is not None
            raise DatabaseUnreachable("the answer is lost")

        with recording(here, store, tmp_path, lose_answer) as recorder:
            recorder.put([], [], plain)
        with recording(here, store, tmp_path):
            pass
        store.delivered(store.undelivered(home, 10))  # of which the lost answer would have told
        _assert_all_recorded(store_url, tmp_path)


class _Away:
    """A store that does not answer when something has ended."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def finish(self, outcomes: object, home: object) -> object:
        raise DatabaseUnreachable("away")


def test_batches_that_wait_are_written_together_and_in_order(here: Here, store: Store) -> None:
    accept(store, *(task(f"t{number}", command=["/bin/true"]) for number in range(4)))
    ends = [here.run([claim])[1] for claim in sorted(Node(store).claim(), key=lambda claim: claim.key.id)]
    records, _ = store.finish(here.reaper.outcomes(ends[2]), home=uuid.uuid4())
    did: list[tuple[str, list[Any]]] = []
    deliverer = Deliverer(
        write=lambda records: did.append(("write", [record.id for record in records])),
        undelivered=lambda limit: [],
        delivered=lambda records: did.append(("delivered", [record.id for record in records])),
        write_plain=lambda plain: did.append(("write", [key.id for key in plain.keys()])),  # noqa: SIM118
        delivered_batches=lambda written: did.append(("delivered", list(written))),
        backlog=lambda: False,
    )
    deliverer.put_plain(ends[0], 1)
    deliverer.put_plain(ends[1], 2)
    deliverer.put(records)
    deliverer.put_plain(ends[3], 3)
    deliverer.start()
    deliverer.stop()
    assert did == [
        ("write", ["t0", "t1"]), ("delivered", [(1, 1), (2, 1)]),
        ("write", ["t2"]), ("delivered", ["t2"]),
        ("write", ["t3"]), ("delivered", [(3, 1)]),
    ]  # fmt: skip
