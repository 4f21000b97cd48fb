"""The calls that training loops make most, log-metric and log-batch, answered before they reach MLflow's own handlers."""

import asyncio
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlstack import settings
from mlstack.server import auth, metrics

PATHS = ("/api/2.0/mlflow/runs/log-metric", "/api/2.0/mlflow/runs/log-batch")


class LogCall:
    """An application for one of these paths: stores what it can and hands on the rest, whole."""

    def __init__(self, mlflow: ASGIApp) -> None:
        self._mlflow = mlflow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        if await _is_stored(request, body):
            await Response(b"{}", media_type="application/json")(scope, receive, send)
        else:
            await self._mlflow(scope, _again(body), send)


def routes(mlflow: ASGIApp) -> list[Route]:
    return [Route(path, LogCall(mlflow), methods=["POST"]) for path in PATHS]


async def _is_stored(request: Request, body: bytes) -> bool:
    user = auth.known(request) if settings.accounts_are_on() else None
    if (settings.accounts_are_on() and user is None) or not _is_json(request.headers):
        return False
    found = metrics.of_call(user, body)
    return found is not None and await asyncio.wrap_future(metrics.writer().store(found))


def _is_json(headers: Mapping[str, str]) -> bool:
    """A page of another origin can send anything else without asking first."""
    return headers.get("Content-Type", "").split(";")[0].strip() == "application/json"


def _again(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
