"""`Store`: everything pysched asks of PostgreSQL.  Any thread may call any method.

Each method is one transaction, committed when it returns (rule 2), so an exception means that nothing is known
to have happened: the caller may simply call again, since repeating a call that did commit changes nothing.
The exception is `claim`, whose lost answer `unstarted` gives again.

All raise `DatabaseUnreachable` if PostgreSQL does not answer and `StoreError` if it refuses.
"""

from __future__ import annotations

import builtins
import os
import select
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pysched._core import PlainEnds
from pysched.draft import Entry
from pysched.errors import ConflictError, DatabaseReadOnly, NotFoundError, TaskError
from pysched.model import (
    LISTENING,
    Abandoned,
    Acceptance,
    AttemptKey,
    Claim,
    NodeInfo,
    Outcome,
    Priority,
    Record,
    Started,
    State,
)
from pysched.policy import Overdue
from pysched.resources import Room
from pysched.store import accepting, arrays, ending, loading, migrate, plain, retention, sql, views
from pysched.store.claiming import Claimer, claim_of, unlimited
from pysched.store.control import Control
from pysched.store.database import Conn, Database, Line

_CLAIM = sql.load("claim")
_NODES = sql.load("nodes")
_VIEW = sql.load("view")
_PROMOTE_BATCH = 1_000
_LIMIT_S = 2.0  # for an answer to a renewal or a ping

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a node may claim: not while it drains, nor once a newer version has changed the schema."""

    draining: bool
    superseded: str | None  # why this version may not work on
    abandoned: bool  # whether `abandoned` has something
    undelivered: bool  # whether `undelivered` has something for the home


@dataclass(frozen=True, slots=True)
class Others:
    """The nodes beside the one that asks."""

    living: int  # as far as anybody knows
    expired: int  # of those: let their lease run out


class Store(Control):
    """Tasks, attempts and nodes in one PostgreSQL database, 14 or newer."""

    def __init__(self, url: str, *, pool_size: int = 4, connect_timeout_s: float = 5.0) -> None:
        """`url` is a libpq connection string; nothing is sent before `open`."""
        self._database = Database(url, pool_size=pool_size, connect_timeout_s=connect_timeout_s)
        self._lease = Line(self._database, _LIMIT_S)  # never behind what the pool does
        self._pings = Line(self._database, _LIMIT_S)
        self._listening = threading.Lock()
        self._listener: Conn | None = None
        self.schema = len(migrate.migrations())  # the version this code knows
        self._hushed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # ── life ──────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Connect; raises `DatabaseUnreachable` naming host, port and database, never the password."""
        self._database.open()

    def close(self) -> None:
        """Close all connections.  A thread in `notifications` is waited for."""
        self.hush()
        self._lease.close()
        self._pings.close()
        self._database.close()
        with self._listening:
            if self._listener is not None:
                self._listener.close()
                self._listener = None

    def be_brief(self, brief: bool) -> None:
        """While the database is known not to answer: fail after half a second instead of waiting for a connection."""
        self._database.be_brief(brief)

    def __enter__(self) -> Store:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def migrate(self) -> None:
        """Bring the schema to this version; `StoreError` if it is newer and not compatible (see `migrate`)."""
        with self._database.session() as conn:
            migrate.migrate(conn, migrate.migrations())

    def ping(self) -> None:
        """Return if the database answers, within a few seconds, and takes writes; `DatabaseReadOnly` if it does not."""
        ((read_only,),) = self._pings.execute(_VIEW.is_read_only)
        if read_only:
            raise DatabaseReadOnly("PostgreSQL takes no writes now: it is a standby, or default_transaction_read_only")

    @property
    def is_on_a_socket(self) -> bool:
        """Whether the server is reached through a Unix socket: then whoever refuses there is the server itself."""
        return self._database.is_on_a_socket

    # ── intake ────────────────────────────────────────────────────────────────────────────────────

    def accept(
        self, tasks: Sequence[Entry], *, source: uuid.UUID, atomic: bool
    ) -> builtins.list[Acceptance | ConflictError | TaskError]:
        """Durably accept `tasks`, each with an id, in their order of arrival; one verdict for each, in that order.

        A task begins `blocked` while one in its `after` has not succeeded, else `scheduled` for `delay_s`, else
        `queued`; after a failed or cancelled one it is accepted and cancelled at once.  The same id with the same
        content is the acceptance from before (`created` false, today's state), with other content a
        `ConflictError`.  `TaskError` refuses an `after` that names no task, a refused one, or closes a cycle.
        Tasks may name each other within one call.

        `atomic`: one refusal, and nothing is written, whatever the other verdicts say.  Otherwise only refused
        ones are left out.  `source` identifies the writer for the totals; use one a process.
        """
        return accepting.accept(self._database, tasks, source=source, atomic=atomic)

    def accept_stream(
        self, tasks: Callable[[], Iterable[Entry]], *, source: uuid.UUID
    ) -> builtins.list[tuple[str, State]] | None:
        """Durably accept many tasks, all or none, while they are being read; their ids and states.

        None, and nothing is accepted, if one of them is there already or needs another: then `accept` has the rules.
        `tasks` may be called more than once, and what it raises ends it.
        """
        return loading.stream(self._database, tasks, source=source)

    # ── nodes and their leases, judged by the database's clock ────────────────────────────────────

    def register(self, info: NodeInfo, lease_s: float) -> None:
        """Begin a node's life, with a lease."""
        parameters = {name: getattr(info, name) for name in info.__slots__}
        self._database.execute(_NODES.register, {**parameters, "lease_s": lease_s})

    def renew(
        self, incarnation: uuid.UUID, lease_s: float, *, running: int, allowed: int | None = None,
        short_of: str | None = None,
    ) -> Others | None:  # fmt: skip
        """Extend the lease; None if the node has ended or was swept, so that it owns nothing any more.

        `allowed`: attempts that it runs at most, for lack of what `short_of` names; None: as many as it has workers.
        On a connection of its own, which an error closes: two calls that returned with none between that raised
        went over the same one.  Waits a few seconds at most; the same holds for `revive` and `end_expired`.
        """
        told = {"running": running, "allowed": allowed, "short_of": short_of}
        parameters = {"incarnation": incarnation, "lease_s": lease_s, **told}
        rows = self._lease.execute(_NODES.renew, parameters)
        return Others(*rows[0]) if rows else None

    def revive(self, info: NodeInfo, lease_s: float) -> None:
        """Begin the life of a node that was swept anew, when it holds nothing any more that it knows of.

        What the store still counts as its own then is: `unstarted` tells.  Tokens are a claim's, not a node's, so
        nothing that was written about its former attempts can be mistaken for the new ones'.
        """
        parameters = {name: getattr(info, name) for name in info.__slots__}
        self._lease.execute(_NODES.revive, {**parameters, "lease_s": lease_s})

    def end_expired(self) -> int:
        """End the nodes that let their lease run out; returns how many.

        Only for a node that could renew without a failure for a whole lease: then the server has been there for all
        others as long.
        """
        return len(self._lease.execute(_NODES.end_expired))

    def end_node(self, incarnation: uuid.UUID) -> None:
        """A node's orderly end; whatever it still holds is abandoned from now on."""
        self._database.execute(_NODES.end, {"incarnation": incarnation})

    def drain(self, incarnation: uuid.UUID) -> None:
        """Let a node claim nothing more, and hand back what waits there; `NotFoundError` if there is no such node.

        It hears of it by the notification `drain`, or when it renews its lease.
        """
        if not self._database.execute(_NODES.drain, {"incarnation": incarnation}):
            raise NotFoundError(f"there is no node {incarnation}")

    def standing(self, incarnation: uuid.UUID, home: uuid.UUID) -> Standing:
        """Whether a node may claim, as far as that is not a matter of its lease, and what there is to do for it."""
        parameters = {"incarnation": incarnation, "home": home, "schema": self.schema}
        ((draining, version, abandoned, undelivered),) = self._database.execute(_NODES.standing, parameters)
        superseded = None if version is None else migrate.superseded(version, self.schema)
        return Standing(draining, superseded, abandoned, undelivered)

    def prune(self, *, home: uuid.UUID, retention_s: float, after: int, limit: int) -> retention.Pruned:
        """Remove tasks that ended more than `retention_s` ago, with their attempts and dependencies.

        Looks at `limit` tasks in order of arrival after the one with `sequence` `after`.  Those that still owe a
        `.done` stay, and those that another home ran which has a living node: it removes their logs, too.  An id is
        free again once its task is gone.  A task that needed one which went without success cannot be retried.
        """
        return retention.prune(self._database, home=home, retention_s=retention_s, after=after, limit=limit)

    def take_over(self, home: uuid.UUID, incarnation: uuid.UUID) -> int:
        """End all other incarnations of `home`, whose lock the caller holds; returns how many those were."""
        return len(self._database.execute(_NODES.take_over, {"home": home, "incarnation": incarnation}))

    def abandoned(self, limit: int) -> builtins.list[Abandoned]:
        """Claims of nodes that have ended.

        Two nodes may be given the same ones: the fence lets one `finish` through.
        """
        rows = self._database.execute(_NODES.abandoned, {"limit": limit})
        return [_abandoned(row) for row in rows]

    def adopt(
        self, home: uuid.UUID, incarnation: uuid.UUID, *, tokens: Sequence[int], suspects: Sequence[int]
    ) -> builtins.list[Abandoned]:
        """Hand over, of the claims with these tokens, those that earlier incarnations of `home` hold, whose lock the
        caller has; returns all of them that it holds then.  `suspects` among them get a crash more.

        The tokens stay: the incarnation before is dead, its results that are still on their way are as good as the
        caller's, and whoever comes after a crash in the middle of this still finds them.  A sweep of the old holder is
        fenced off by the holder.  Comes before `take_over`, lest others sweep in between.
        """
        parameters = {"home": home, "incarnation": incarnation, "tokens": list(tokens), "suspects": list(suspects)}
        self._database.execute(_NODES.adopt, parameters)
        rows = self._database.execute(_NODES.adopted, {"incarnation": incarnation, "tokens": list(tokens)})
        return [_abandoned(row) for row in rows]

    def nodes(self) -> builtins.list[Row]:
        """The nodes that live, oldest first."""
        return [
            {
                **{
                    name: value if isinstance(value, int | float | str | None) else str(value)
                    for name, value in row.items()
                },
                **{name: views.rfc3339(row[name]) for name in ("started_at", "renewed_at", "lease_until")},
            }
            for row in (dict(zip(_NODE_COLUMNS, row, strict=True)) for row in self._database.execute(_NODES.list))
        ]

    # ── running ───────────────────────────────────────────────────────────────────────────────────

    def claim(
        self, incarnation: uuid.UUID, *, lowest: Priority, limit: int, overdue: Sequence[Overdue] = ()
    ) -> builtins.list[Claim]:
        """Up to `limit` ready tasks, best first, each under a new token: those that `overdue` asks for, of any
        priority, and then such of `lowest` or higher.

        None if the queue is paused, or the node is draining, has ended, has no valid lease or is too old for the
        schema.  Tasks that other transactions are looking at are skipped; whoever locks a ready task without taking
        it notifies.
        """
        return self.claimer(incarnation).claim(lowest=lowest, limit=limit, overdue=overdue)

    def claimer(self, incarnation: uuid.UUID, room: Callable[[], Room] = unlimited) -> Claimer:
        """The same for a node that claims again and again: it does not begin at the head each time, should that be
        slow.  `room()` is what it has for tasks that ask for processors, memory or GPUs."""
        return Claimer(self._database, incarnation, self.schema, room=room)

    def unstarted(self, incarnation: uuid.UUID) -> builtins.list[AttemptKey]:
        """What a node has claimed and not started: what it compares with its memory after a lost answer."""
        return [_key(row) for row in self._database.execute(_CLAIM.unstarted, {"node": incarnation})]

    def promote(self) -> float | None:
        """Queue the scheduled tasks whose time has come; seconds until the next one's, None if there is none."""
        while True:
            ((count, seconds, _),) = self._database.execute(_CLAIM.promote, {"limit": _PROMOTE_BATCH})
            if count < _PROMOTE_BATCH:
                return None if seconds is None else max(0.0, seconds)

    def start(self, started: Sequence[Started]) -> builtins.list[AttemptKey]:
        """Record that attempts run; returns those that are not this node's any more, or have ended."""
        if not started:
            return []
        ordered = sorted(started, key=lambda item: item.key.id)  # one order of locks for all writers
        parameters = {
            "ids": arrays.texts([item.key.id for item in ordered]),
            "attempts": arrays.numbers([item.key.attempt for item in ordered]),
            "tokens": arrays.numbers([item.key.token for item in ordered]),
            "pids": arrays.numbers([item.pid for item in ordered]),
            "starts": arrays.times([item.started_at for item in ordered]),
        }
        owned = {_key(row) for row in self._database.execute(_CLAIM.start, parameters)}
        return [item.key for item in started if item.key not in owned]

    def finish(
        self, outcomes: Sequence[Outcome], *, home: uuid.UUID | None
    ) -> tuple[builtins.list[Record], builtins.list[AttemptKey]]:
        """Record ended attempts, whether or not their start was, and what follows for their tasks.

        A retry is `scheduled` (`queued` at once for a delay of 0); a cancel that was asked for meanwhile turns it
        into `cancelled: user`.  Each task that ends here gets an undelivered record for `home`; a success frees
        the tasks that waited for it, any other end cancels them, all the way down.

        Returns the records of the tasks that ended, and the attempts that were not the caller's to end: nothing
        was written about those.  Repeated after its answer was lost, it gives that answer.
        """
        return ending.finish(self._database, outcomes, home=home)

    def finish_plain(self, ends: PlainEnds, *, node: uuid.UUID, home: uuid.UUID) -> int | None:
        """The same for plain ends of attempts that `node` holds; the number of the batch by which their `.done` files
        are owed, or None if nothing was recorded, since at least one is not what it was: then ask `finish`."""
        return plain.finish(self._database, ends, node=node, home=home)

    # ── records ───────────────────────────────────────────────────────────────────────────────────

    def undelivered(self, home: uuid.UUID, limit: int) -> builtins.list[Record]:
        """Records whose `.done` this home owes; those of tasks that never ran become the first home's that asks."""
        return ending.undelivered(self._database, home, limit)

    def delivered(self, records: Sequence[Record]) -> None:
        """Their `.done` files are durable."""
        ending.delivered(self._database, records)

    def delivered_batches(self, written: Sequence[tuple[int, int]]) -> None:
        """All files of batches of `finish_plain` are durable; of each its number and how many files that are."""
        ending.delivered_batches(self._database, written)

    def record(self, task_id: str) -> Record:
        """A terminal task's record; `NotFoundError`, or `InputError` if the task has not ended."""
        return ending.record(self._database, task_id)

    # ── steering ──────────────────────────────────────────────────────────────────────────────────

    def cancel(self, task_id: str) -> State:
        """Cancel a task, and what depends on it; `NotFoundError` if there is none.

        Returns `cancelled` if it was waiting; its present state if a node holds it, which is then asked to end it
        (notification `cancel`); a terminal state unchanged.
        """
        return ending.cancel(self._database, task_id)

    def cancellations(self, incarnation: uuid.UUID) -> builtins.list[AttemptKey]:
        """Attempts that a node holds and should end."""
        return [_key(row) for row in self._database.execute(_CLAIM.cancellations, {"node": incarnation})]

    def retry(self, task_id: str) -> State:
        """Let a failed or cancelled task run again, with all its retries; returns its new state.

        `NotFoundError`; `InputError` for one in any other state, or that needs a task that will not succeed.
        Tasks that were cancelled because of it stay so: retry them too.
        """
        return ending.retry(self._database, task_id)

    def set_paused(self, paused: bool) -> None:
        """Stop or resume claiming, on all nodes."""
        self._database.execute(_VIEW.set_paused, {"paused": paused})

    def paused(self) -> bool:
        ((paused,),) = self._database.execute(_VIEW.paused)
        return bool(paused)

    # ── looking ───────────────────────────────────────────────────────────────────────────────────

    def get(self, task_id: str) -> Row:
        """One task as plain JSON values: its columns, `attempts` with the running one last, and `task`, the
        content as submitted without defaults; `NotFoundError`."""
        return views.get(self._database, task_id)

    def stats(self) -> Row:
        """`states`: tasks in each state; `priorities`: the same by priority; `queued` and `running` among them;
        totals `submitted` and `retried`; `paused`."""
        return views.stats(self._database)

    def depths(self) -> tuple[dict[Priority, int], int]:
        """Queued tasks by priority, in the store and on nodes; and how many were ever `submitted`."""
        return views.depths(self._database)

    def submitted(self) -> int:
        """Tasks ever accepted as new."""
        ((total,),) = self._database.execute(_VIEW.submitted)
        return int(total)

    def notifications(self, timeout_s: float) -> Iterator[str]:
        """What nodes tell each other: `ready`, `due`, `accepted`, `cancel`, `drain`; LISTENING when hearing begins.

        Hints only.  Waits at most `timeout_s` seconds for the first.  The connection is the store's own and
        stays open between calls; one thread at a time.
        `hush` ends the wait, and all later ones.
        """
        with self._listening, self._database.translated():
            try:
                if self._listener is None:
                    self._listener = self._database.connect()
                    self._listener.execute("LISTEN pysched")
                    yield LISTENING
                # Not by the driver, whose wait looks up ten times a second: an idle node must cost nothing.
                readable = select.poll()
                readable.register(self._listener.pgconn.socket, select.POLLIN)
                readable.register(self._hushed, select.POLLIN)
                heard, deadline = False, time.monotonic() + timeout_s
                while not heard and (left := deadline - time.monotonic()) > 0:
                    if self._hushed in dict(readable.poll(left * 1000)):
                        return
                    # Nor by what it takes to hand them out: whoever is waited for waits for this thread's GIL, too.
                    server = self._listener.pgconn
                    server.consume_input()
                    while (notification := server.notifies()) is not None:
                        heard = True
                        yield notification.extra.decode()
            finally:
                if self._listener is not None and self._listener.broken:
                    self._listener.close()
                    self._listener = None

    def hush(self) -> None:
        """Let `notifications` wait no more; for the end of a node."""
        os.eventfd_write(self._hushed, 1)


_NODE_COLUMNS = (
    "incarnation", "home", "host", "pid", "workers", "lanes", "version", "running", "draining",
    "started_at", "renewed_at", "lease_until", "cpus", "mem", "gpus", "cpus_held", "mem_held", "gpus_held",
    "allowed", "short_of",
)  # fmt: skip


def _key(row: Sequence[Any]) -> AttemptKey:
    return AttemptKey._make(row)


def _abandoned(row: Sequence[Any]) -> Abandoned:
    *claim, holder, launcher, pid, started_at, crashes = row
    return Abandoned(
        claim=claim_of(claim), holder=holder, node=str(launcher), pid=pid, started_at=started_at, crashes=crashes
    )
