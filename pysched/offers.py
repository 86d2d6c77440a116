"""What a node and the API of the same home say to each other, so that a task is the node's from its first commit on.

Over a socket in the home folder, on which the node listens; each message is one packet::

    node ─► API   ["node", incarnation, schema]                 once
    node ─► API   ["room", n]                                   so many tasks in all, since the connection began
    API ─► node   ["may", [[id, priority, rank, spec], …]]      before the insert is sent to the database
    API ─► node   ["did", [[token, sequence, µs] | null, …]]    after its commit; null: that one is not the node's

Each "may" is answered by one "did", in order.  As it comes first, a node always knows whether something could be its
own that nobody has told it of: when the connection ends or falls silent with a "may" still open.  Then it asks the
store.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PACKET_BYTES = 64 * 1024  # the longest message; well below what a socket holds unasked

_NAME = "offers.sock"

Given = tuple[int, int, int]  # token, sequence, time of submission in µs since the epoch


def packet(kind: str, *content: Any) -> bytes:
    return json.dumps([kind, *content], separators=(",", ":"), ensure_ascii=False).encode()


def unpacked(data: bytes) -> list[Any]:
    """`ValueError` for what is none."""
    message = json.loads(data)
    if not isinstance(message, list) or not message:
        raise ValueError("no message")
    return message


def listener(home: Path) -> socket.socket:
    """Where the node of that home, which holds its lock, is found; only by its own user."""
    listening = _socket()
    try:
        with _place(home) as place:
            with suppress(FileNotFoundError):
                os.unlink(place)
            listening.bind(place)
            os.chmod(place, 0o600)  # nobody can connect before it listens
        listening.listen(1)
    except BaseException:
        listening.close()
        raise
    return listening


def connection(home: Path) -> socket.socket:
    """To the node of that home, without a wait; `OSError` if there is none."""
    connecting = _socket()
    try:
        connecting.setblocking(False)
        with _place(home) as place:
            connecting.connect(place)
    except BaseException:
        connecting.close()
        raise
    return connecting


def say(to: socket.socket, message: bytes) -> bool:
    """Without a wait; False: the other side does not listen, or does not keep up."""
    try:
        to.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    return True


def heard(source: socket.socket) -> bytes:
    """The next message; nothing: the other side has ended, and all that it said was heard."""
    try:
        return source.recv(2 * PACKET_BYTES)
    except ConnectionResetError:  # said once, before what waits: it ended without reading all that it was told
        return source.recv(2 * PACKET_BYTES)


def fits(specs: Sequence[str]) -> bool:
    """Whether tasks of these specs surely go into one message: a character is up to six bytes of JSON."""
    return 6 * sum(map(len, specs)) + 256 * len(specs) < PACKET_BYTES


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


@contextmanager
def _place(home: Path) -> Iterator[str]:
    """A path of the socket that is never longer than the 107 bytes an address holds."""
    folder = os.open(home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{_NAME}"
    finally:
        os.close(folder)
