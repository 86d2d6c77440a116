"""Opening the store when the server may come up later than we do, as after a restart of the machine.

::

    not open ─┬─ opened, migrated ─────────────────────────────► open
              ├─ nobody answers, or not yet ───────────────────► said once, tried again with back-off
              ├─ told to stop meanwhile ───────────────────────► given up
              └─ the server refuses us, or cannot be used so ──► error: waiting would not mend it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from pysched.errors import DatabaseRefused, DatabaseUnreachable
from pysched.store.store import Store

BACKOFF_S = (0.25, 5.0)


@contextmanager
def opened(url: str, give_up: Callable[[float], bool]) -> Iterator[Store | None]:
    """The store at `url`, open and its schema brought to this version; closed after the block.

    None once `give_up(seconds)`, which waits so long, says so.
    """
    store = _opened(url, give_up)
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def _opened(url: str, give_up: Callable[[float], bool]) -> Store | None:
    log = structlog.get_logger("store")
    said, pause = "", BACKOFF_S[0]
    while True:
        store = Store(url)  # anew each time: its pool cannot be opened twice
        try:
            store.open()
            store.migrate()
        except BaseException as error:
            store.close()
            if not isinstance(error, DatabaseUnreachable) or isinstance(error, DatabaseRefused):
                raise
            if said != str(error):
                said = str(error)
                log.warning("waiting for the database", error=said)
        else:
            if said:
                log.info("the database answers")
            return store
        if give_up(pause):
            return None
        pause = min(pause * 2, BACKOFF_S[1])
