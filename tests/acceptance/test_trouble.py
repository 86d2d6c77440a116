"""The database fails in all ways; jobs run on, results are kept, work resumes, and nothing is recorded twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pysched.client import Client
from pysched.engine.lease import LEASE_S
from pysched.store.embedded import EmbeddedServer
from pysched.store.store import Store
from tests.acceptance.conftest import Process, Site, wait_until
from tests.database import open_home
from tests.integration.store_driver import accept, task
from tests.proxy import Proxy, proxied


class OwnServer:
    """A PostgreSQL that a test may stop and start as an administrator does: nobody starts it again by himself."""

    def __init__(self, home: Path) -> None:
        self._embedded = EmbeddedServer(home)
        with self._embedded.running() as url:
            self.url = url
        self._placement = self._embedded._placement()
        self.start()

    def start(self, **options: str) -> None:
        programs = self._embedded._choose(self._placement)
        self._embedded._start(programs, self._placement)

    def stop(self, mode: str = "fast") -> None:
        programs = self._embedded._choose(self._placement)
        command = [programs.program("pg_ctl"), "stop", "-w", "-s", "-m", mode, "-D", self._placement.data.name]
        self._placement.owner.run(command, cwd=self._placement.base, timeout_s=60)

    def execute(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def postmaster(self) -> int:
        return int((self._placement.data / "postmaster.pid").read_text().splitlines()[0])

    def backends(self) -> list[int]:
        """Of all others."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pysched'"
        return [pid for (pid,) in self.execute(query)]

    def destroy(self) -> None:
        self._embedded.destroy()


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with open_home() as home:
        server = OwnServer(home)
        try:
            yield server
        finally:
            server.destroy()


@pytest.fixture
def shaky(tmp_path: Path, server: OwnServer) -> Iterator[Site]:
    """A site on a server of its own."""
    site = Site(tmp_path, server.url)
    try:
        yield site
    finally:
        site.close()


class Job:
    """A task that runs until it is let go, and writes down each of its attempts as it begins."""

    def __init__(self, site: Site, name: str) -> None:
        self.name = name
        self._site = site
        self._fifo = site.root / f"{name}.fifo"
        self._ledger = site.root / f"{name}.ledger"
        os.mkfifo(self._fifo)
        self.content = {"command": f"echo $$ >>{self._ledger}; read line <{self._fifo}; exit 0", "max_retries": 0}

    def begin(self) -> Job:
        self._site.drop(self.name, self.content)
        self.await_attempts(1)
        return self

    def await_attempts(self, count: int) -> list[int]:
        """Pids of the attempts, the first one first."""
        pids: list[int] = wait_until(
            lambda: len(self.pids()) >= count and self.pids(), f"attempt {count} of {self.name}"
        )
        return pids

    def pids(self) -> list[int]:
        return [int(line) for line in self._ledger.read_text().split()] if self._ledger.exists() else []

    def lives(self) -> bool:
        return Path(f"/proc/{self.pids()[-1]}").exists()

    def let_go(self) -> None:
        # Not blocking, so that a job that is gone fails the test instead of hanging it.
        descriptor = wait_until(self._writer, f"{self.name} to read")
        os.write(descriptor, b"\n")
        os.close(descriptor)

    def _writer(self) -> int | None:
        try:
            return os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None


def await_start_recorded(server: OwnServer, *names: str) -> None:
    query = "SELECT count(*) FROM pysched.tasks WHERE state = 'running' AND id = ANY(%s)"
    wait_until(lambda: server.execute(query, list(names)) == [(len(names),)], "the starts to be recorded")


def spooled(site: Site) -> list[Path]:
    return list((site.home / "spool").glob("*.jsonl"))


def assert_ran_once(record: dict[str, Any]) -> None:
    assert (record["status"], record["attempts"]) == ("succeeded", 1)


def test_jobs_outlive_an_outage_that_is_longer_than_a_lease(shaky: Site, server: OwnServer) -> None:
    node = shaky.node()
    long, short = Job(shaky, "long").begin(), Job(shaky, "short").begin()
    await_start_recorded(server, "long", "short")
    server.stop()
    down = time.monotonic()
    node.await_message("the lease is not renewed")
    short.let_go()
    wait_until(lambda: spooled(shaky), "the result to be kept")
    wait_until(lambda: time.monotonic() > down + LEASE_S + 2, "the lease to be over")
    assert long.lives()
    assert shaky.done_ids() == []
    server.start()
    assert_ran_once(shaky.done("short"))
    long.let_go()
    assert_ran_once(shaky.done("long"))
    wait_until(lambda: not spooled(shaky), "the spool to be emptied")
    shaky.drop("after", {"command": "true"})
    assert_ran_once(shaky.done("after"))
    assert len(long.pids()) == len(short.pids()) == 1
    assert "no longer" not in node.messages
    assert node.terminate() == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_node_that_ends_while_the_database_is_down_leaves_its_results_to_the_next(
    shaky: Site, server: OwnServer, end: signal.Signals
) -> None:
    node = shaky.node()
    job = Job(shaky, "job").begin()
    await_start_recorded(server, "job")
    server.stop("immediate")
    job.let_go()
    wait_until(lambda: spooled(shaky), "the result to be kept")
    if end == signal.SIGTERM:
        assert node.terminate() == 0
        assert "kept in the spool" in node.messages
    else:
        node.kill()
    server.start()
    successor = shaky.node()
    assert_ran_once(shaky.done("job"))
    assert len(job.pids()) == 1
    assert spooled(shaky) == []
    assert "recorded results from the spool" in successor.messages
    assert successor.terminate() == 0


def restart_immediately(server: OwnServer) -> None:
    server.stop("immediate")
    server.start()


def kill_a_backend(server: OwnServer) -> None:
    """The postmaster then ends all others, too, and recovers."""
    os.kill(server.backends()[0], signal.SIGKILL)


def kill_the_postmaster(server: OwnServer) -> None:
    os.kill(server.postmaster(), signal.SIGKILL)
    server._embedded._clear_away_the_dead(server._placement)
    server.start()


def take_all_connections(server: OwnServer) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(psycopg.connect(server.url, autocommit=True))
        first.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pysched'")
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(server.url))
        first.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pysched'")


def let_nobody_write(server: OwnServer) -> None:
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    wait_until(lambda: server.execute("SHOW default_transaction_read_only") == [("on",)], "the new setting")
    with psycopg.connect(server.url, autocommit=True) as conn:
        conn.execute("SET default_transaction_read_only = off")
        conn.execute("ALTER SYSTEM RESET default_transaction_read_only")
        conn.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    "fault", [restart_immediately, kill_a_backend, kill_the_postmaster, take_all_connections, let_nobody_write]
)
def test_a_fault_of_the_database_is_survived(
    shaky: Site, server: OwnServer, fault: Callable[[OwnServer], None]
) -> None:
    if fault is take_all_connections:
        server.execute("ALTER SYSTEM SET max_connections = 20")
        server.stop()
        server.start()
    node = shaky.node()
    job = Job(shaky, "job").begin()
    await_start_recorded(server, "job")
    fault(server)
    shaky.drop("after", {"command": "true"})
    assert_ran_once(shaky.done("after"))
    assert job.lives()
    job.let_go()
    assert_ran_once(shaky.done("job"))
    assert len(job.pids()) == 1
    assert node.terminate() == 0


def test_health_says_what_is_wrong_and_that_it_is_over(shaky: Site, server: OwnServer) -> None:
    shaky.start("api", "--port", "0")
    wait_until((shaky.home / "api.json").exists, "the API to answer")
    with Client(home=shaky.home, retries=0) as client:

        def health() -> tuple[str, str]:
            said = client.health()
            return said["status"], said["database"]

        assert health() == ("ok", "ok")
        server.stop()
        wait_until(lambda: health() == ("unavailable", "down"), "the API to say that the database is down")
        assert "refuses connections" in client.health()["problem"]
        server.start()
        wait_until(lambda: health() == ("ok", "ok"), "the API to be well again")
        server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        server.execute("SELECT pg_reload_conf()")
        wait_until(lambda: health() == ("unavailable", "read-only"), "the API to say that it cannot write")


@pytest.fixture
def proxy(server: OwnServer) -> Iterator[Proxy]:
    with proxied(server.url) as proxy:
        yield proxy


def node_elsewhere(site: Site, root: Path, database: str) -> tuple[Site, Process]:
    """A node with a home of its own and no files in, on the same database."""
    root.mkdir()
    other = Site(root, database)
    site.processes.append(node := other.node())
    return other, node


def test_a_node_that_is_cut_off_ends_its_jobs_and_comes_back(
    shaky: Site, server: OwnServer, proxy: Proxy, tmp_path: Path
) -> None:
    shaky.database = proxy.url
    node = shaky.node()
    job = Job(shaky, "job").begin()
    await_start_recorded(server, "job")
    other, _ = node_elsewhere(shaky, tmp_path / "other", server.url)
    proxy.silence()
    node.await_message("the lease could not be renewed: ending all jobs")
    wait_until(lambda: not job.lives(), "the job to be ended")
    lost = "SELECT reason FROM pysched.tasks WHERE id = 'job' AND state = 'failed'"
    wait_until(lambda: server.execute(lost) == [("lost",)], "the other to take over")
    proxy.speak()
    node.await_message("the lease is valid again")
    shaky.drop("after", {"command": "true"})
    assert_ran_once(wait_for_either(shaky, other, "after"))
    assert wait_for_either(shaky, other, "job")["reason"] == "lost"
    assert len(job.pids()) == 1
    assert "Traceback" not in node.messages


def wait_for_either(first: Site, second: Site, task_id: str) -> dict[str, Any]:
    def found() -> Site | None:
        return next((site for site in (first, second) if task_id in site.done_ids()), None)

    site: Site = wait_until(found, f"{task_id}.done")
    return site.done(task_id)


def signal_node(process: Process, number: signal.Signals) -> None:
    (pid,) = process.children()
    os.kill(pid, number)


def test_a_node_that_was_stopped_past_its_lease_drops_what_it_held(
    shaky: Site, server: OwnServer, tmp_path: Path
) -> None:
    other, _ = node_elsewhere(shaky, tmp_path / "other", server.url)
    job = Job(shaky, "job")
    job.content["max_retries"] = 1
    job.content["retry_delay_s"] = 0
    node = shaky.node()
    signal_node(other.processes[0], signal.SIGSTOP)  # so that the job is the node's
    job.begin()
    await_start_recorded(server, "job")
    signal_node(other.processes[0], signal.SIGCONT)
    signal_node(node, signal.SIGSTOP)
    job.await_attempts(2)
    await_start_recorded(server, "job")
    signal_node(node, signal.SIGCONT)
    node.await_message("the lease is valid again")
    job.let_go()
    record = wait_for_either(shaky, other, "job")
    assert (record["status"], record["attempts"]) == ("succeeded", 2)
    assert len(job.pids()) == 2
    (first, second) = server.execute("SELECT reason, node FROM pysched.attempts WHERE task_id = 'job' ORDER BY attempt")
    assert first[0] == "lost"
    assert first[1] != second[1]


def test_a_claim_whose_answer_was_lost_is_found(shaky: Site, server: OwnServer, proxy: Proxy) -> None:
    shaky.database = proxy.url
    with Store(server.url) as store:
        store.migrate()
        accept(store, task("lost", command="true"))
    proxy.lose_answer_to(b"nextval('pysched.tokens')")
    node = shaky.node()
    node.await_message("handing back claims whose answer was lost")
    assert_ran_once(shaky.done("lost"))
    assert node.terminate() == 0


def test_the_embedded_server_is_started_again(tmp_path: Path) -> None:
    with open_home() as root:
        site = Site(root, "")
        embedded = EmbeddedServer(site.home)
        up = site.start("up", "--port", "0", "--workers", "4", "--queue", str(site.queue))
        site.completed = site.home / "completed"
        try:
            wait_until((site.home / "api.json").exists, up.messages)
            job = Job(site, "job").begin()
            with Client(home=site.home) as client:
                wait_until(lambda: client.get("job")["status"] == "running", "the start to be recorded")
            before = _postmaster_of(embedded)
            os.kill(before, signal.SIGKILL)
            up.await_message("PostgreSQL runs again")
            assert _postmaster_of(embedded) != before
            site.drop("after", {"command": "true"})
            assert_ran_once(site.done("after"))
            assert job.lives()
            job.let_go()
            assert_ran_once(site.done("job"))
            assert up.terminate() == 0
        finally:
            if up.popen.poll() is None:
                up.terminate()
            site.close()
            embedded.destroy()


def _postmaster_of(embedded: EmbeddedServer) -> int:
    return int((embedded._placement().data / "postmaster.pid").read_text().splitlines()[0])


def test_what_starts_before_its_database_waits_for_it(shaky: Site, server: OwnServer) -> None:
    server.stop()
    folders = ["--queue", str(shaky.queue), "--completed", str(shaky.completed)]
    up = shaky.start("up", "--port", "0", *folders)
    wait_until(lambda: up.messages.count("waiting for the database") == 2, "node and API to say so")
    assert len(up.children()) == 2
    server.start()
    up.await_message(" ready ")
    wait_until((shaky.home / "api.json").exists, "the API to answer")
    assert up.messages.count("the database answers") == 2
    shaky.drop("job", {"command": "true"})
    assert shaky.done("job")["status"] == "succeeded"
    assert up.terminate() == 0


def test_a_stop_ends_the_wait_for_the_database(shaky: Site, server: OwnServer) -> None:
    server.stop()
    node = shaky.start("run", "--database", make_conninfo(server.url, password="s3cret"))
    node.await_message("waiting for the database")
    assert "s3cret" not in node.messages
    assert node.terminate() == 0


def test_a_database_that_lets_nobody_in_is_not_waited_for(shaky: Site, server: OwnServer) -> None:
    for wrong in (make_conninfo(server.url, password="s3cret"), make_conninfo(server.url, dbname="nothing")):
        node = shaky.start("run", "--database", wrong)
        assert node.popen.wait(60) == 1
        assert node.messages.startswith("error: PostgreSQL at ")
        assert node.messages.count("\n") == 1
        assert "s3cret" not in node.messages
