"""The most frequent calls of training loops, log-metric and log-batch, answered before they reach MLflow's own handlers."""

import asyncio

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mlstack import settings
from mlstack.server import auth, guard, metrics

ROOT = "/api/2.0/mlflow/runs/"
READERS = {f"{ROOT}log-metric": metrics.points_of_metric, f"{ROOT}log-batch": metrics.points_of_batch}


class MetricRoutes:
    """Stores the points of these calls if their login is cached, and passes every other request on unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = READERS.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        headers = Headers(scope=scope if read else {"headers": []})
        login = auth.known(headers) if settings.accounts_are_on() else None
        # The body of a login that is not cached is not read before its password is checked.
        if read is None or not _is_json(headers) or (login is None and settings.accounts_are_on()):
            await self._app(scope, receive, send)
            return
        body = await guard.read(scope, receive, send)
        if body is None:
            return
        points = read(login, body)
        if points is not None and await asyncio.wrap_future(metrics.writer().store(points)):
            await Response(b"{}", media_type="application/json")(scope, receive, send)
        else:
            await self._app(scope, guard.replayed(body, receive), send)


def _is_json(headers: Headers) -> bool:
    """As MLflow reads it: a page of another origin can send any other type without a preflight."""
    return headers.get("content-type", "").split(";")[0] == "application/json"
