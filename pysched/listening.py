"""The API's listening socket outlives the API: the guard keeps a copy of it, and hands it to the next one.

::

    API ── binds, sends a copy over the channel ──► guard
     │ is loaded anew, or dies: whoever connects waits in the kernel's queue, under the same port
     ▼
    next API ◄── gets it back, if its settings still name the same address; else the guard's copy is silenced

Once the guard is told to stop it lets go, so that nobody waits for an API that does not come back.  No other process
ever has the socket: all descriptors here are closed by an exec, but for that of the API.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RELOAD = signal.SIGUSR2  # to a guard, a node or an API: end, in order to be started anew


class Keeper:
    """The guard's side.  `listener` is a descriptor, or None; `address` the settings that it was bound for."""

    def __init__(self, listener: int | None = None, address: str = "") -> None:
        self.listener = listener
        self.address = address
        self._channel: socket.socket | None = None

    @contextlib.contextmanager
    def link(self) -> Iterator[tuple[str, Sequence[int]]]:
        """For the start of an API inside the block: its `Place` as text, and the descriptors that it inherits."""
        self._end_channel()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._channel = ours
        with theirs:
            inherited = [theirs.fileno(), *([] if self.listener is None else [self.listener])]
            yield str(Place(theirs.fileno(), self.listener, self.address)), inherited

    @property
    def channel(self) -> int | None:
        """Readable when there is something to `take`."""
        return None if self._channel is None else self._channel.fileno()

    def take(self) -> None:
        """What an API has sent, or that it has closed the channel."""
        while self._channel is not None:
            try:
                told, descriptors, _, _ = socket.recv_fds(self._channel, 4096, 1)
            except BlockingIOError:
                return
            except OSError:
                told, descriptors = b"", []
            for descriptor in descriptors:
                os.set_inheritable(descriptor, False)
                self._close_listener()
                self.listener, self.address = descriptor, told.decode()
            if not told:
                self._end_channel()

    def release(self) -> None:
        """Nobody is going to listen again."""
        self._close_listener()
        self._end_channel()

    def _close_listener(self) -> None:
        if self.listener is not None:
            os.close(self.listener)
            self.listener = None

    def _end_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


@dataclass(frozen=True, slots=True)
class Place:
    """The API's side, an option of its command line."""

    channel: int
    listener: int | None
    address: str

    @classmethod
    def from_text(cls, text: str) -> Place:
        """To be called once, at the start."""
        channel, listener, address = text.split(":", 2)
        place = cls(int(channel), int(listener) if listener else None, address)
        for descriptor in (place.channel, place.listener):
            if descriptor is not None:
                os.set_inheritable(descriptor, False)
        return place

    def __str__(self) -> str:
        return f"{self.channel}:{'' if self.listener is None else self.listener}:{self.address}"

    def kept(self, address: str) -> socket.socket | None:
        """The socket of the API before, if it is for `address`; one for another is silenced, the guard's copy, too."""
        if self.listener is None:
            return None
        kept = socket.socket(fileno=self.listener)
        if self.address == address:
            return kept
        with contextlib.suppress(OSError):  # silenced before
            kept.shutdown(socket.SHUT_RDWR)
        kept.close()
        return None

    def keep(self, listener: socket.socket, address: str) -> None:
        """Give the guard a copy."""
        with socket.socket(fileno=self.channel) as channel, contextlib.suppress(OSError):  # a guard that has just died
            socket.send_fds(channel, [address.encode()], [listener.fileno()])
