"""A TCP proxy in front of a PostgreSQL server, which can go silent as a network does: nothing is refused or closed."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Forwards connections to the server of `url`, until `silence`."""

    def __init__(self, url: str) -> None:
        given = conninfo_to_dict(url)
        self._socket = f"{given['host']}/.s.PGSQL.{given.get('port') or 5432}"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._unheard: set[socket.socket] = set()
        self._words: bytes | None = None
        self._prepared: socket.socket | None = None
        self._forwarding = True
        self._wake, self._woken = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = make_conninfo(url, host="127.0.0.1", port=self._listener.getsockname()[1], sslmode="disable")
        self._thread.start()

    def silence(self) -> None:
        """From now on: connections stand, new ones are taken, and nothing goes through any of them."""
        self._set(False)

    def lose_answer_to(self, words: bytes) -> None:
        """The first connection that prepares a statement with `words` in it hears nothing any more once it runs it."""
        self._words = words

    def speak(self) -> None:
        """Forward again, what has waited too."""
        self._set(True)

    def _set(self, forwards: bool) -> None:
        self._forwarding = forwards
        self._wake.send(b"x")

    def close(self) -> None:
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        for each in (*self._pairs, self._listener, self._wake, self._woken):
            each.close()

    def _run(self) -> None:
        while not self._closing:
            sources = [each for each in self._pairs if self._forwarding and each not in self._unheard]
            ready, _, _ = select.select([self._listener, self._woken, *sources], [], [])
            for source in ready:
                if source is self._woken:
                    self._woken.recv(64)
                elif source is self._listener:
                    self._connect()
                elif source in self._pairs:
                    self._forward(source)

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._socket)
        except OSError:
            server.close()
            client.close()
            return
        self._pairs[client], self._pairs[server] = server, client

    def _forward(self, source: socket.socket) -> None:
        target = self._pairs[source]
        try:
            data = source.recv(65536)
            if data:
                if source is self._prepared:
                    self._unheard.add(target)
                    self._prepared = None
                if self._words is not None and self._words in data:
                    self._prepared, self._words = source, None
                target.sendall(data)
                return
        except OSError:
            pass
        for end in (source, target):
            self._pairs.pop(end, None)
            self._unheard.discard(end)
            end.close()


@contextlib.contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    proxy = Proxy(url)
    try:
        yield proxy
    finally:
        proxy.close()
