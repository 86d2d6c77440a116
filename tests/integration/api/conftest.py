"""A control plane on a real store, shared by the tests of a module: each test makes the tasks it looks at."""

from __future__ import annotations

import http.client
import json
import types
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from pysched.api.app import create_app
from pysched.api.context import FindLogs
from pysched.api.problems import MEDIA_TYPE
from pysched.model import Claim, Exit, NodeInfo, Outcome, Priority, Started
from pysched.offers import Given
from pysched.policy import RetryRule, verdict
from pysched.settings import Settings
from pysched.store.store import Store
from pysched.task import Task
from tests.database import NewDatabase
from tests.integration.api.control_plane import running

TOKEN = "a-token-for-tests"
LEASE_S = 3600.0


class Worker:
    """A node in the store's eyes, which does what a test says and no more."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Claim] = {}
        self.incarnation = uuid.uuid4()
        self.home = uuid.uuid4()
        store.register(
            NodeInfo(
                incarnation=self.incarnation,
                home=self.home,
                host="host",
                pid=1,
                workers=1,
                lanes=1,
                version="0",
            ),
            LEASE_S,
        )

    def claim(self) -> list[Claim]:
        """Everything that can be claimed."""
        claims = self._store.claim(self.incarnation, lowest=Priority.LOW, limit=100_000)
        self._held.update({claim.key.id: claim for claim in claims})
        return claims

    def start(self, task_id: str) -> None:
        self.claim()
        started = Started(key=self._held[task_id].key, pid=4711, started_at=now())
        assert self._store.start([started]) == []

    def finish(
        self,
        task_id: str,
        *,
        exit_code: int = 0,
        stdout: Path | None = None,
        stderr: Path | None = None,
        result: object = None,
    ) -> None:
        claim = self._held.pop(task_id)
        task = Task.from_spec(task_id, claim.spec)
        ended = Exit(
            pid=4711,
            started_at=now(),
            finished_at=now(),
            exit_code=exit_code,
            stdout=None if stdout is None else str(stdout),
            stderr=None if stderr is None else str(stderr),
            result=None if result is None else json.dumps(result),
        )
        rule = RetryRule(max_retries=task.max_retries, retry_delay_s=0)
        outcome: Outcome = verdict(claim.key, ended, failures=claim.failures, rule=rule, jitter=0)
        _, lost = self._store.finish([outcome], home=self.home)
        assert lost == []
        self._store.promote()

    def run_all(self, **how: Any) -> None:
        """One attempt of everything that can be claimed."""
        self.claim()
        for task_id in list(self._held):
            self.run(task_id, **how)

    def run(self, task_id: str, **how: Any) -> None:
        """One attempt from claim to end."""
        self.start(task_id)
        self.finish(task_id, **how)


class NoInserter:
    """Never knows."""

    async def insert(self, tasks: Sequence[Task], /) -> set[str] | None:
        return None

    async def hand_over(self, tasks: Sequence[Task], node: str, schema: int, /) -> Mapping[str, Given | None] | None:
        return None

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    database_url: str
    store: Store
    settings: Settings
    url: str
    http: httpx.Client
    worker: Worker

    def submit(self, **task: Any) -> str:
        """The id of a new task that the control plane has accepted."""
        answer = self.http.post("/submit", json=task)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def task_with_logs(self, folder: Path, *, stdout: bytes = b"", stderr: bytes = b"") -> str:
        """A task that has run once and left this output."""
        task_id = self.submit()
        (folder / "out").write_bytes(stdout)
        (folder / "err").write_bytes(stderr)
        self.worker.run(task_id, stdout=folder / "out", stderr=folder / "err")
        return task_id

    @contextmanager
    def served_with(
        self,
        *,
        settings: Settings | None = None,
        log_files: FindLogs | None = None,
        **methods: Callable[..., Any],
    ) -> Iterator[httpx.Client]:
        """A client of a second control plane on the same store, some of whose methods are replaced."""
        own = {name: getattr(self.store, name) for name in dir(self.store) if not name.startswith("_")}
        if "accept" in methods:  # then every task comes that way
            own["inserter"] = lambda: NoInserter()
        store = cast("Store", types.SimpleNamespace(**{**own, **methods}))
        app = create_app(store, settings or self.settings, token=TOKEN, log_files=log_files)
        with running(app) as url, client(url) as http_client:
            yield http_client

    def raw_path(self, method: str, path: str) -> httpx.Response:
        """Ask for exactly this path, which a client would normalise."""
        parts = urlsplit(self.url)
        channel = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            channel.request(method, path, headers={"Authorization": f"Bearer {TOKEN}"})
            answer = channel.getresponse()
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())
        finally:
            channel.close()


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False)


def now() -> datetime:
    return datetime.now(timezone.utc)


def assert_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The document of an RFC 9457 answer."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    document: dict[str, Any] = json.loads(answer.content)
    assert document["status"] == status
    assert document["type"].startswith("urn:pysched:problem:")
    assert document["title"]
    assert document["detail"]
    assert isinstance(document["errors"], list)
    return document


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase) -> Iterator[Api]:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    with (
        new_database() as database_url,
        Store(database_url) as store,
        running(create_app(store, settings, token=TOKEN)) as url,
        client(url) as http_client,
    ):
        yield Api(
            database_url=database_url,
            store=store,
            settings=settings,
            url=url,
            http=http_client,
            worker=Worker(store),
        )
