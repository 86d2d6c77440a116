"""What do many listeners at GET /events cost, and does dispatch feel them?

    python -m benchmarks.listeners [--listeners 1000] [--count 2000] [--rounds 5]

A whole `scheduler up`; in turns without listeners and with them: a batch of /bin/true from its request to the last
`.done` file.  Then, idle but for that, single tasks: from the request to their arrival at each listener.  The clients
run beside the server, so what they read is part of the price.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psutil

from benchmarks.server import Server, running
from pysched.home import ADDRESS_FILE, TOKEN_FILE

_PATIENCE_S = 120.0


class Listeners:
    """Connections to /events, read by one thread."""

    def __init__(self, url: str, token: str, count: int) -> None:
        parts = urlsplit(url)
        head = f"GET /events HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._marker = b"event: ready"
        self._seen: dict[int, float] = {}  # connection → when the marker came
        self._tails: dict[int, bytes] = {}
        self.bytes = 0
        self._sockets = [socket.create_connection((parts.hostname or "", parts.port or 0)) for _ in range(count)]
        for each in self._sockets:
            each.sendall(head)
            self._selector.register(each, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def expect(self, marker: bytes) -> None:
        self._seen, self._tails, self._marker = {}, {}, marker

    def arrivals(self) -> list[float]:
        """When the marker came to each, once it has come to all."""
        deadline = time.monotonic() + _PATIENCE_S
        while len(self._seen) < len(self._sockets):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(self._seen)} of {len(self._sockets)} listeners heard of it")
            time.sleep(0.01)
        return [*self._seen.values()]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for each in self._sockets:
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(262_144)
                if not data:
                    self._selector.unregister(key.fileobj)
                self.bytes += len(data)
                text = self._tails.get(key.fd, b"") + data
                if key.fd not in self._seen and self._marker in text:
                    self._seen[key.fd] = time.perf_counter()
                self._tails[key.fd] = text[-64:]


@contextmanager
def listening(server: Server, count: int) -> Iterator[Listeners]:
    url = json.loads((server.home / ADDRESS_FILE).read_text())["url"]
    listeners = Listeners(url, (server.home / TOKEN_FILE).read_text().strip(), count)
    try:
        listeners.arrivals()
        yield listeners
    finally:
        listeners.close()


def dispatched(server: Server, count: int) -> float:
    """/bin/true a second, from one batch."""
    assert server.client is not None
    completed = server.home / "completed"
    before = _done(completed)
    start = time.perf_counter()
    server.client.submit_many({"command": ["/bin/true"]} for _ in range(count))
    while _done(completed) - before < count:
        time.sleep(0.02)
    return count / (time.perf_counter() - start)


def _done(folder: os.PathLike[str]) -> int:
    return sum(name.endswith(".done") and not name.startswith(".") for name in os.listdir(folder))


def delays(server: Server, listeners: Listeners, probes: int) -> list[float]:
    """From the request of a task to its arrival, for each probe and listener, in ms."""
    assert server.client is not None
    found: list[float] = []
    for _ in range(probes):
        task_id = str(uuid.uuid4())
        listeners.expect(task_id.encode())
        time.sleep(1)  # a quiet time
        start = time.perf_counter()
        server.client.submit({"id": task_id, "delay_s": 86_400})
        found += [(arrival - start) * 1e3 for arrival in listeners.arrivals()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--listeners", type=int, default=1_000)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=20)
    options = parser.parse_args()
    with running("up", "--port", "0", "--workers", "8") as server:
        api = psutil.Process(json.loads((server.home / ADDRESS_FILE).read_text())["pid"])
        dispatched(server, options.count)  # warm
        memory: list[int] = []
        ratios: list[float] = []
        costs: list[float] = []
        for _ in range(options.rounds):
            alone = dispatched(server, options.count)
            before = api.memory_info().rss
            with listening(server, options.listeners):
                memory.append(api.memory_info().rss - before)
                begun = sum(api.cpu_times()[:2])
                ratios.append(dispatched(server, options.count) / alone)
                costs.append((sum(api.cpu_times()[:2]) - begun) / options.count * 1e6)
        with listening(server, options.listeners) as listeners:
            begun, start = sum(api.cpu_times()[:2]), time.perf_counter()
            time.sleep(5)
            idle = (sum(api.cpu_times()[:2]) - begun) / (time.perf_counter() - start)
            waits = delays(server, listeners, options.probes)
    print(
        f"dispatch  {statistics.median(ratios):.2f}x that without listeners ({min(ratios):.2f} … {max(ratios):.2f}), "
        f"{statistics.median(costs):.0f} µs of the server a task"
    )
    print(f"memory    +{memory[0] / options.listeners / 1024:.0f} KiB a listener; idle {idle:.1%} of a core")
    quantiles = statistics.quantiles(waits, n=100)
    print(f"delivery  p50 {quantiles[49]:.0f} ms, p99 {quantiles[98]:.0f} ms from the request to each listener")


if __name__ == "__main__":
    main()
