"""The control plane in this process: the real application on a real uvicorn, on a loopback port of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from pysched.api.server import configuration

READY_S = 30.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.app.state.context.end_streams()  # type: ignore[union-attr]
        await super().shutdown(sockets=sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


@contextlib.contextmanager
def running(app: FastAPI, *, keep_alive_s: float | None = None) -> Iterator[str]:
    """The URL of `app`, served from a thread until the block ends."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = configuration(app)
        if keep_alive_s is not None:
            config.timeout_keep_alive = keep_alive_s  # type: ignore[assignment]
        server = _Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn")
        thread.start()
        try:
            assert server.ready.wait(READY_S), "the server did not start"
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
