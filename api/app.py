"""Builds the control plane on a store."""

from __future__ import annotations

import functools
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from starlette.types import Receive, Scope, Send

import pysched
from pysched.api import events, logs, nodes, operations, problems, schema, submit, tasks, tokens
from pysched.api.acceptor import Acceptor
from pysched.api.backend import Backend
from pysched.api.context import Context, FindLogs
from pysched.api.direct import Direct
from pysched.api.feed import Feed
from pysched.api.keyring import Keyring
from pysched.api.metrics import Metrics
from pysched.api.mirror import Mirror
from pysched.api.security import Gate, allowed_hosts, check_exposure
from pysched.settings import Settings


def create_app(
    store: Backend,
    settings: Settings,
    *,
    token: str | None,
    token_file: Path | None = None,
    log_files: FindLogs | None = None,
) -> FastAPI:
    """The application; `store` is open, and the caller's to close after the application has shut down.

    `token` is the administrator's; None serves without one, which raises `SettingsError` unless `settings.no_auth`
    is set and `settings.host` is a loopback address.  If it came from `token_file`, it changes with it.
    `log_files` tells where attempts that still run write their output; without it only logs of ended ones are shown.
    """
    check_exposure(settings.host, token, no_auth=settings.no_auth)
    source = uuid.uuid4()
    inserter = store.inserter()
    direct = Direct(settings.home, inserter.insert, inserter.hand_over)
    shared = Context(
        store=store,
        settings=settings,
        acceptor=Acceptor(functools.partial(store.accept, source=source, atomic=False), direct.insert),
        mirror=None if settings.mirror is None else Mirror(settings.mirror.absolute()),
        log_files=log_files,
        source=source,
        keyring=Keyring(token, store.tokens, file=token_file),
        feed=Feed(store.watcher),
        metrics=Metrics(),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if shared.mirror is not None:
            shared.mirror.prepare()
        try:
            yield
        finally:
            await shared.feed.close()
            await shared.acceptor.close()
            direct.close()
            await inserter.close()

    app = ControlPlane(
        title="pysched",
        summary="Submit, watch and steer jobs",
        version=pysched.__version__,
        lifespan=lifespan,
        # The pages behind these load their scripts from another site.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(problems.only_known_parameters)],
    )
    app.state.context = shared
    problems.install(app)
    for resource in (submit, tasks, logs, nodes, events, operations, tokens):
        app.include_router(resource.router)
    schema.install(app)
    names, any_address = allowed_hosts(settings.host)
    app.gate = Gate(app.route, keyring=shared.keyring, hosts=names, any_address=any_address)
    return app


class ControlPlane(FastAPI):
    """FastAPI behind the gate."""

    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.gate(scope, receive, send)
        else:  # the lifespan; WebSockets are switched off in the server
            await super().__call__(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        shared: Context = self.state.context
        timed = shared.metrics.timed(scope["method"], lambda: _template(scope), send)
        await super().__call__(scope, receive, timed)


def _template(scope: Scope) -> str:
    """The path as it stands in the document; one name for all that is nowhere, or each would be a series of its own."""
    return getattr(scope.get("route"), "path_format", "none")
