"""A node without processes: claims, starts nothing, and finishes until COUNT tasks have ended.

    python -m benchmarks.durable.consume pysched|raw URL COUNT

Two threads, as in a node: one claims, one records what has ended meanwhile.  Prints `ready`, then `done`.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, cast

from benchmarks.durable import raw
from benchmarks.durable.no_ops import NoOps
from pysched._core import PlainEnds
from pysched.model import Claim, NodeInfo, Priority
from pysched.store.store import Store

BATCH = 1_000
_PAUSE_S = 0.002


def main() -> None:
    kind, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    home, incarnation = uuid.uuid4(), uuid.uuid4()
    info = NodeInfo(incarnation=incarnation, home=home, host="bench", pid=1, workers=1, lanes=1, version="0")
    with Store(url) as store:
        store.register(info, 3600.0)
        if kind == "raw":
            with raw.connect(url) as claims, raw.connect(url) as ends:
                run(
                    lambda: raw.claim(claims, incarnation, BATCH),
                    lambda rows: raw.finish(ends, incarnation, home, rows),
                    count,
                )
        else:

            def finish(claims: list[Claim]) -> None:
                ends = cast(PlainEnds, NoOps(claims))
                if store.finish_plain(ends, node=incarnation, home=home) is None:
                    raise RuntimeError("not all of these attempts are ours any more")

            run(lambda: store.claim(incarnation, lowest=Priority.LOW, limit=BATCH), finish, count)


def run(claim: Callable[[], list[Any]], finish: Callable[[list[Any]], object], count: int) -> None:
    claimed: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    unfinished = count

    def record() -> None:
        nonlocal unfinished
        while unfinished:
            batch = claimed.get()
            while not claimed.empty():
                batch += claimed.get()
            finish(batch)
            unfinished -= len(batch)

    recorder = threading.Thread(target=record)
    recorder.start()
    print("ready", flush=True)
    left = count
    while left:
        if batch := claim():
            left -= len(batch)
            claimed.put(batch)
        else:
            time.sleep(_PAUSE_S)
    recorder.join()
    if unfinished:
        raise SystemExit("the recording thread died")
    print("done", flush=True)


if __name__ == "__main__":
    main()
