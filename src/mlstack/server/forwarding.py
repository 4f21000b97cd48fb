"""Requests for the AI gateway and jobs, which the optional part `gateway` answers: a server of its own (docs/adr/0032).

The database knows whether the part is on: its server is connected. (Looking up its name takes ten seconds while it is off.)
So MLflow need not be restarted to switch the part on or off; while it is off, MLflow's own handlers answer that the gateway is
disabled. A request keeps the caller's login, which the other server checks again.
"""

import re
from functools import cache

import aiohttp
from mlflow.exceptions import MlflowException
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from mlstack import settings
from mlstack.server import auth
from mlstack.server.guard import replayed
from mlstack.server.upstream import TEMPORARILY_UNAVAILABLE, accounts, tracking_store

GATEWAY = "http://gateway.mlstack.internal:5000"
# PGAPPNAME of its server (compose/gateway.yml). Another role cannot pretend: a role sees the names of its own connections alone.
NAME = "mlstack-gateway"
_CONNECTED = "SELECT 1 AS connected FROM pg_stat_activity WHERE usename = current_user AND application_name = %(name)s LIMIT 1"
_INFO = re.compile(r"/(ajax-)?api/3\.0/mlflow/server-info")
# Not the route that takes any job from any account, with any account's name in it (POST …/3.0/jobs/): MLflow's page uses those
# that check permissions.
_PATHS = re.compile(
    rf"/gateway/.*|{_INFO.pattern}|/ajax-api/3\.0/(mlflow/)?jobs/(cancel/)?[^/]+"
    r"|/(ajax-)?api/3\.0/mlflow/(gateway|prompt-optimization)/.*"
    r"|/ajax-api/3\.0/mlflow/(scorer|issues|genai/evaluate)/invoke"
)
# Of one connection (RFC 9110), or added again by this server.
_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection", "date", "server"}


class Forwarded:
    """Forwards such a request when the part is on; every other one is for the application behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _PATHS.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")  # complete: guard.Bodies has read it
        try:
            answer = await _forwarded(scope, body) if await run_in_threadpool(_is_on) else None
        except (aiohttp.ClientError, MlflowException) as error:
            if not _INFO.fullmatch(scope["path"]):
                await auth.error_response(_unavailable(error))(scope, receive, send)
                return
            answer = None  # MLflow's page and clients work without the gateway
        if answer is None:
            await self._app(scope, replayed(body, receive), send)
            return
        async with answer:
            response = StreamingResponse(answer.content.iter_any(), answer.status)
            response.raw_headers = [
                (name.lower(), value) for name, value in answer.raw_headers if name.lower().decode() not in _HOP
            ]
            await response(scope, receive, send)


def _is_on() -> bool:
    return bool(auth.rows(accounts if settings.accounts_are_on() else tracking_store(), _CONNECTED, name=NAME))


def _unavailable(error: Exception) -> MlflowException:
    return MlflowException(
        f"The AI gateway does not answer: {error}. Models, judges and jobs need it; all else works."
        " Fix: make status, then make logs SERVICE=gateway.",
        TEMPORARILY_UNAVAILABLE,
    )


async def _forwarded(scope: Scope, body: bytes) -> aiohttp.ClientResponse:
    query = scope["query_string"].decode("latin-1")
    url = URL(GATEWAY + scope["raw_path"].decode("latin-1") + (f"?{query}" if query else ""), encoded=True)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"] if name.decode() not in _HOP]
    return await _session().request(scope["method"], url, headers=headers, data=body, allow_redirects=False)


@cache
def _session() -> aiohttp.ClientSession:
    """One for each worker, in its own event loop. No time limit: the gateway has one for each model."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver(), limit=0, ttl_dns_cache=1),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )
