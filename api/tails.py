"""Which of the files that are followed have grown: one look at all of them a tick, however many follow."""

from __future__ import annotations

import asyncio
import os

TICK_S = 0.2


class Tails:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Future[None], tuple[str, int]] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._ended = False

    def growth(self, path: str, size: int) -> asyncio.Future[None]:
        """Done once the file has more than `size` bytes, or after `end`.  Cancel it if you wait no more."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._ended:
            future.set_result(None)
            return future
        self._waits[future] = (path, size)
        future.add_done_callback(lambda done: self._waits.pop(done, None))
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        return future

    def end(self) -> None:
        self._ended = True
        for future in [*self._waits]:
            if not future.done():
                future.set_result(None)

    async def _tick(self) -> None:
        try:
            while self._waits and not self._ended:
                waits = [*self._waits.items()]
                paths = {path for _, (path, _) in waits}
                sizes = await asyncio.to_thread(_sizes, paths)
                for future, (path, size) in waits:
                    if sizes[path] > size and not future.done():
                        future.set_result(None)
                await asyncio.sleep(TICK_S)
        finally:
            self._ticker = None


def _sizes(paths: set[str]) -> dict[str, int]:
    sizes = {}
    for path in paths:
        try:
            sizes[path] = os.stat(path, follow_symlinks=False).st_size
        except OSError:
            sizes[path] = 0  # not there yet, or on another machine
    return sizes
