"""An installation of pysched under test: a PostgreSQL of its own, nodes and an API, each behind a proxy of its own.

`World` is also the machine's service manager: what dies is started again, as systemd would do.  Which process is the
node and which its guard is found in /proc, since that is the product's own business.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.chaos import processes
from tests.chaos.cluster import Cluster
from tests.chaos.history import Amount
from tests.chaos.proxy import Proxy

OFFER = Amount(cpus=4, mib=1024, gpus=2)  # of each node, whatever this machine has
READY_S = 90.0
STOP_S = 60.0
_RESTART_S = 0.2
_HERE = Path(__file__).parent

GPUS = tuple(f"gpu-{number}" for number in range(int(OFFER.gpus)))

# What the store did, written down by the store: each end of a task, each write of an attempt's record.
_WITNESS = """
    CREATE SCHEMA chaos;
    CREATE TABLE chaos.ends (task text, state text, attempts integer);
    CREATE FUNCTION chaos.end() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos.ends VALUES (NEW.id, NEW.state, NEW.attempts);
        RETURN NULL;
    END $$;
    CREATE TRIGGER chaos_born AFTER INSERT ON pysched.tasks FOR EACH ROW
        WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION chaos.end();
    CREATE TRIGGER chaos_ended AFTER UPDATE ON pysched.tasks FOR EACH ROW
        WHEN (NEW.finished_at IS NOT NULL AND NEW.finished_at IS DISTINCT FROM OLD.finished_at)
        EXECUTE FUNCTION chaos.end();
"""


class Service:
    """A command line that is started again when it dies, until it is told to stop."""

    def __init__(self, name: str, command: Sequence[str], environ: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environ = environ
        self._wanted = False
        self._died_at = 0.0
        self._guard = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        with self._guard:
            self._wanted = True
            self._spawn()

    def look_after(self) -> None:
        """Start it again if it is dead."""
        with self._guard:
            if not self._wanted or self.process is None or self.process.poll() is None:
                return
            if not self._died_at:
                self._died_at = time.monotonic()
            elif time.monotonic() - self._died_at > _RESTART_S:
                self._spawn()

    def terminate(self) -> None:
        with self._guard:
            self._wanted = False
            if self.process is not None and self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)

    def await_end(self) -> str | None:
        """None if it ended by itself; else it is killed, and this is what it was doing."""
        if self.process is None:
            return None
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pid = self.process.pid
            doing = [processes.describe(each) for each in (pid, *processes.descendants(pid))]
            self.process.kill()
            self.process.wait()
            return "\n".join([f"{self.name} did not stop", *doing, self.messages[-1500:]])
        return None

    @property
    def pid(self) -> int | None:
        """Of the process that was started, if it lives."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def messages(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._died_at = 0.0
        self.starts += 1


class Clock:
    """The offsets that `clock.c` adds to the clocks of one service."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._realtime_s = self._boottime_s = 0.0
        self._lock = threading.Lock()  # two jumps at once: the later write must not take the other one back
        self.set(realtime_s=0.0)

    def set(self, *, realtime_s: float) -> None:
        with self._lock:
            self._realtime_s = realtime_s
            self._write()

    def advance(self, *, boottime_s: float) -> None:
        with self._lock:
            self._boottime_s += boottime_s
            self._write()

    def _write(self) -> None:
        data = struct.pack("qq", round(self._realtime_s * 1e9), round(self._boottime_s * 1e9))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, data, 0)  # in place: the file is mapped
        finally:
            os.close(descriptor)


class Node(Service):
    """`scheduler run`, and what it consists of."""

    def __init__(self, name: str, command: Sequence[str], environ: dict[str, str], log: Path, completed: Path) -> None:
        self.clock = Clock(log.with_suffix(".clock"))
        super().__init__(name, command, {**environ, "CHAOS_CLOCK": str(log.with_suffix(".clock"))}, log)
        self.completed = completed

    def parts(self) -> tuple[int | None, int | None]:
        """(guard, node): the process that was started and the one below it; without a guard the first is None."""
        top = self.pid
        if top is None:
            return None, None
        below = [pid for pid in processes.children(top) if self._is_ours(pid)]
        return (top, below[0]) if below else (None, top)

    @staticmethod
    def _is_ours(pid: int) -> bool:
        """Of a node that died its zygote may be left, for a moment, and its jobs."""
        words = processes.command(pid)
        return b"pysched" in words and b"zygote.py" not in words and b"PYSCHED_TASK_ID=" not in processes.environ(pid)


class World:
    """Everything, below one folder; `keep` leaves that for a look after a violation."""

    def __init__(
        self,
        *,
        nodes: int,
        workers: int = 8,
        launcher: Sequence[str] = (sys.executable, "-m", "pysched.cli"),
        environ: dict[str, str] | None = None,
        alter: str = "",
        small_disks: bool = False,
        clocks: bool = False,
    ) -> None:
        """`launcher`: what runs instead of `scheduler`; `alter`: SQL that spoils the schema, for bugs on purpose.

        `small_disks`: nodes write their `.done` files to small file systems, if we may mount them; `clocks`: theirs
        can be made to jump.
        """
        # Short, for the socket; open to pass through, since root's PostgreSQL runs as another user.
        self.root = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.root.chmod(0o711)
        self._alter = alter
        self.ledger = self.root / "ledger"
        self.locks = self.root / "locks"
        self.queue = self.root / "queue"
        self.job = self.root / "job"
        self.calls = self.root / "calls"  # where entrypoints run
        self.keep = False
        for path in (self.locks, self.queue, self.calls):
            path.mkdir()
        shutil.copy(_HERE / "witness.py", self.calls)
        self.cluster = Cluster(self._folder("pg"))
        self.nodes: list[Node] = []
        self.proxies: list[Proxy] = []  # of the nodes, then of the API
        self._launcher = launcher
        self._environ = environ or {}
        self._small_disks = small_disks
        self._clocks = clocks
        self._counts = (nodes, workers)
        self._stop = threading.Event()
        self._manager = threading.Thread(target=self._manage, name="service manager", daemon=True)
        self.api: Service | None = None

    def __enter__(self) -> World:
        try:
            compile_c("job.c", self.job)
            self.cluster.create()
            self.cluster.start()
            if self._clocks:
                library = self.root / "clock.so"
                compile_c("clock.c", library, "-shared", "-fPIC", "-ldl")
                self._environ = {**self._environ, "LD_PRELOAD": str(library)}
            count, workers = self._counts
            for number in range(count):
                self._add_node(number, workers)
            self._prepare_database()
            for node in self.nodes:
                node.start()
            self.api = self._make("api", self.root / "node-0", ["api", "--port", "0"])  # which gives that node tasks
            self.api.start()
            self._manager.start()
            self.await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def services(self) -> list[Service]:
        return [*self.nodes, *([self.api] if self.api is not None else [])]

    def await_ready(self) -> None:
        """Every node and the API have begun to work."""
        wait_for(
            lambda: all("ready" in node.messages for node in self.nodes) and self.address() is not None,
            "nodes and API to start",
            READY_S,
            self.last_words,
        )

    def address(self) -> tuple[str, str] | None:
        """(URL, token) of the API, as it published them itself."""
        try:
            url = json.loads((self.root / "node-0" / "api.json").read_text())["url"]
            return url, (self.root / "node-0" / "token").read_text().strip()
        except (OSError, ValueError, KeyError):
            return None

    def leftovers(self) -> list[int]:
        """Processes of jobs and services of this world, whoever their parents are by now."""
        mark = str(self.root).encode()
        return [
            pid
            for pid in processes.everyone()
            if pid != os.getpid() and (mark in processes.command(pid) or mark in processes.environ(pid))
            if not processes.command(pid).startswith(b"postgres") and b"/pg/data" not in processes.command(pid)
        ]

    def drain(self) -> list[str]:
        """Stop all services as their users would; what did not stop."""
        for service in self.services:
            service.terminate()
        late = [words for service in self.services if (words := service.await_end()) is not None]
        with contextlib.suppress(TimeoutError):  # a node whose guard was killed drains by itself; who is left is said
            wait_for(lambda: not self.leftovers(), "orphans to end", STOP_S)
        return late

    def last_words(self) -> str:
        """For somebody who wants to know why it hangs."""
        said = [f"{service.name} said last:\n{service.messages[-1500:]}" for service in self.services]
        return "\n".join([*said, "processes:", *(processes.describe(pid) for pid in self.leftovers())])

    def close(self) -> None:
        self._stop.set()
        if self._manager.ident is not None:
            self._manager.join()
        for service in self.services:
            service.terminate()
            if service.process is not None:
                service.process.kill()
                service.process.wait()
        for _ in range(10):  # a process may fork while we look
            left = self.leftovers()
            if not left:
                break
            for pid in left:
                processes.kill(pid)
        self.cluster.stop()
        for proxy in self.proxies:
            proxy.close()
        for node in self.nodes:
            if os.path.ismount(node.completed):
                subprocess.run(["umount", "--lazy", node.completed], check=False)
        if not self.keep:
            shutil.rmtree(self.root, ignore_errors=True)

    def _add_node(self, number: int, workers: int) -> None:
        home, completed = self.root / f"node-{number}", self._folder(f"completed-{number}")
        if self._small_disks and os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(completed)]
            subprocess.run(
                command, check=False, capture_output=True
            )  # not in every container: then it is an ordinary one
        words = ["run", "--workers", str(workers), "--queue", str(self.queue), "--completed", str(completed)]
        words += ["--cpus", f"{OFFER.cpus:g}", "--mem", f"{OFFER.mib}MiB", "--gpus", ",".join(GPUS)]
        service = self._make(f"node-{number}", home, words, completed)
        assert isinstance(service, Node)
        self.nodes.append(service)

    def _make(self, name: str, home: Path, words: list[str], completed: Path | None = None) -> Service:
        proxy = Proxy(self.cluster.socket)
        self.proxies.append(proxy)
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PYSCHED_")}
        environ.update(self._environ)
        environ["PYSCHED_DATABASE"] = self.cluster.url("127.0.0.1", proxy.port)
        command = [*(self._launcher if completed else (sys.executable, "-m", "pysched.cli"))]
        command += [words[0], "--home", str(home), *words[1:]]
        log = self.root / f"{name}.log"
        return (
            Service(name, command, environ, log) if completed is None else Node(name, command, environ, log, completed)
        )

    def _prepare_database(self) -> None:
        from pysched.store.store import Store

        with Store(self.cluster.url("127.0.0.1", self.proxies[0].port), connect_timeout_s=60) as store:
            store.migrate()
        with self.cluster.connect() as conn:
            conn.execute(_WITNESS)
            if self._alter:
                conn.execute(self._alter.encode())

    def _folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        return path

    def _manage(self) -> None:
        while not self._stop.wait(0.05):
            for service in self.services:
                service.look_after()


def compile_c(source: str, target: Path, *options: str) -> None:
    """With the C compiler that pysched needs for its own build."""
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-O2", *options, "-o", target, _HERE / source], check=True)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float, explain: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}\n{explain()}")
        time.sleep(0.02)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[bool]:
    """SIGSTOP inside the block, SIGCONT after it; yields whether it really stopped."""
    try:
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: processes.state(pid) in {"T", "t", "Z", ""}, f"{pid} to stop", 30)
        yield processes.state(pid) in {"T", "t"}
    except ProcessLookupError:
        yield False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
