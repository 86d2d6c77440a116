"""The network between one client of the database and the server: a TCP proxy that can fail like one.

::

    node ──TCP──► proxy ──Unix socket──► PostgreSQL

    open       bytes pass
    paused     nothing passes, nothing is lost: it comes later
    blackhole  what was connected is forgotten without a word, and new connections are accepted and lead nowhere
    refusing   connections are reset, and refused
    deaf       requests pass, answers do not: when one comes, the connection is reset instead (a COMMIT whose answer
               is lost)
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 1 << 16
MODES = ("open", "paused", "blackhole", "refusing", "deaf")


@dataclass(slots=True, eq=False)
class _Pair:
    client: socket.socket
    server: socket.socket | None  # None: leads nowhere
    forgotten: bool = False
    sockets: list[socket.socket] = field(default_factory=list)


class Proxy:
    """One listening port on loopback and its connections, served by a thread."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._pairs: set[_Pair] = set()
        self._mode = "open"
        self._wanted = "open"
        self._hit = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    def switch(self, mode: str) -> int:
        """From now on behave like that; returns how many connections that hit at once."""
        assert mode in MODES
        with self._changed:
            self._wanted = mode
            self._wake_writer.send(b"!")
            self._changed.wait_for(lambda: self._mode == mode or self._closing, 60)
            return self._hit

    def close(self) -> None:
        self._closing = True
        self._wake_writer.send(b"!")
        self._thread.join()
        for pair in list(self._pairs):
            self._drop(pair)
        for each in (self._listener, self._wake_reader, self._wake_writer):
            each.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_reader:
                    self._wake_reader.recv(4096)
                    self._turn()
                elif key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.data in self._pairs:
                    self._pass(key.data, key.fileobj)

    def _turn(self) -> None:
        with self._changed:
            mode = self._wanted
            self._hit = sum(not pair.forgotten for pair in self._pairs)
            for pair in list(self._pairs):
                if mode == "refusing":
                    self._drop(pair, reset=True)
                elif mode == "blackhole":
                    self._forget(pair)
                elif not pair.forgotten:
                    self._listen_to(pair, mode != "paused")
            self._mode = mode
            self._changed.notify_all()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._mode == "refusing":
            _reset(client)
            return
        pair = _Pair(client, None)
        if self._mode == "blackhole":
            pair.forgotten = True
            self._pairs.add(pair)
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._target))
        except OSError:  # the server is down: what a client sees of that is a closed connection
            server.close()
            _reset(client)
            return
        pair.server = server
        self._pairs.add(pair)
        self._listen_to(pair, self._mode != "paused")

    def _listen_to(self, pair: _Pair, listen: bool) -> None:
        for each in (pair.client, pair.server):
            if each is None:
                continue
            if listen and each not in pair.sockets:
                self._selector.register(each, selectors.EVENT_READ, pair)
                pair.sockets.append(each)
            elif not listen and each in pair.sockets:
                self._selector.unregister(each)
                pair.sockets.remove(each)

    def _forget(self, pair: _Pair) -> None:
        """The client hears nothing any more; the server sees its client gone, as after its own keepalives."""
        self._listen_to(pair, False)
        pair.forgotten = True
        if pair.server is not None:
            pair.server.close()
            pair.server = None

    def _pass(self, pair: _Pair, source: socket.socket) -> None:
        from_server = source is pair.server
        target = pair.client if from_server else pair.server
        try:
            data = source.recv(_CHUNK)
            if data and from_server and self._mode == "deaf":
                self._drop(pair, reset=True)
            elif data and target is not None:
                target.sendall(data)
            else:
                self._drop(pair)
        except OSError:
            self._drop(pair, reset=True)

    def _drop(self, pair: _Pair, *, reset: bool = False) -> None:
        self._listen_to(pair, False)
        self._pairs.discard(pair)
        if pair.server is not None:
            pair.server.close()
        if reset:
            _reset(pair.client)
        else:
            pair.client.close()


def _reset(client: socket.socket) -> None:
    """Close with a RST."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
