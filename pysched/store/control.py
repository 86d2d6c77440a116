"""`Control`: pages of tasks, many at once, reasons, news, tokens: what the control plane asks beside single tasks."""

from __future__ import annotations

import builtins
import uuid
from typing import Any

from pysched.errors import InputError, NotFoundError
from pysched.selection import Cancelled, Page, Retried, Selection
from pysched.store import bulk, explaining, listing, sql, views
from pysched.store.changes import Watcher
from pysched.store.database import Database
from pysched.store.inserter import Inserter

_QUERIES = sql.load("control")

Row = dict[str, Any]


class Control:
    """A part of `Store`."""

    _database: Database

    def page(self, selection: Selection, *, limit: int, before: int | None = None) -> Page:
        """Tasks as `get` shows them, newest first, `attempts` as their number; `next` is what to give as `before` for
        more, None at the end.  Fewer than `limit` rows, or none, do not mean that this is the end."""
        found = listing.page(self._database, selection, limit=limit, before=before)
        return Page([views.task(row) for row in found.rows], found.next)

    def cancel_many(self, selection: Selection, *, limit: int, before: int | None = None) -> Cancelled:
        """As `cancel`, all on a page of a selection; what was done stays done if it fails half-way."""
        return bulk.cancel(self._database, selection, limit=limit, before=before)

    def retry_many(self, selection: Selection, *, limit: int, before: int | None = None) -> Retried:
        """As `retry`, all on a page of a selection; those that cannot be are named."""
        return bulk.retry(self._database, selection, limit=limit, before=before)

    def explain(self, task_id: str) -> Row:
        """Why a task does not run yet; `NotFoundError`."""
        return explaining.explain(self._database, task_id)

    def watcher(self) -> Watcher:
        """An ear for changes; the caller's to close."""
        return Watcher(self._database)

    def inserter(self) -> Inserter:
        """A fast way in for single tasks, driven by an event loop; that loop's to close."""
        return Inserter(self._database)

    # ── tokens ────────────────────────────────────────────────────────────────────────────────────

    def create_token(self, name: str, *, scope: str, digest: bytes) -> Row:
        """`{name, scope, created_at}`; `InputError` if the name is taken."""
        parameters = {"name": name, "scope": scope, "digest": digest}
        for row in self._database.execute(_QUERIES.create_token, parameters):
            return _token(*row)
        raise InputError(f"there is a token {name} already; revoke it first, or choose another name")

    def tokens(self) -> builtins.list[tuple[Row, bytes]]:
        """All tokens with the digests by which they are known."""
        return [(_token(*row), bytes(digest)) for *row, digest in self._database.execute(_QUERIES.tokens)]

    def revoke_token(self, name: str) -> Row:
        for row in self._database.execute(_QUERIES.revoke_token, {"name": name}):
            return _token(*row)
        raise NotFoundError(f"there is no token {name}")

    # ── what nodes have measured ──────────────────────────────────────────────────────────────────

    def publish_latencies(self, incarnation: uuid.UUID, histograms: str) -> None:
        self._database.execute(_QUERIES.publish_latencies, {"incarnation": incarnation, "histograms": histograms})
        self._database.execute(_QUERIES.forget_latencies)

    def latencies(self) -> builtins.list[tuple[str, str]]:
        """The newest reading of each node that lives: incarnation, JSON."""
        return [(str(incarnation), text) for incarnation, text in self._database.execute(_QUERIES.latencies)]

    def leases(self) -> builtins.list[tuple[str, str, int, int, bool, float]]:
        """Of each node that lives: incarnation, host, workers, running, draining, seconds since it was renewed."""
        return [(str(row[0]), *row[1:]) for row in self._database.execute(_QUERIES.leases)]


def _token(name: str, scope: str, created_at: Any) -> Row:
    return {"name": name, "scope": scope, "created_at": views.rfc3339(created_at)}
