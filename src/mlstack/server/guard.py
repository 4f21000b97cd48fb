"""The guard before MLflow's application, from the outside in (docs/adr/0015):

- Origins: only MLflow's own pages and clients that are no browser pass.
- (metric_routes: stores metric points of cached logins.)
- Login: everything but static files and health checks needs an account, before any of the body is read.
- Bodies: a body is limited in size and time, and contains nothing that Postgres cannot store.

Each is a plain ASGI application around the next.
"""

import asyncio
import json
import re
import time
from collections.abc import Collection

from mlflow.exceptions import MlflowException
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlstack.errors import MlstackError
from mlstack.server import auth
from mlstack.server.throttle import TooManyLoginsError
from mlstack.server.upstream import (
    INVALID_HOST_MSG,
    TRACE_RENDERER_ASSET_PATH,
    is_allowed_host_header,
    is_health_endpoint,
)

# Large enough for MLflow's largest calls: a data set's profile of 16 MB, with JSON's escapes. Artifacts are streamed, unlimited.
LARGEST_BODY = 32 << 20  # bytes
# The time that a body may take: this, and more for each byte that has arrived.
BODY_SECONDS = 30
SLOWEST = 1024  # bytes in a second
UPLOADS = ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?")
# In JSON: after an even number of backslashes, or it is a backslash and the text u0000.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Origins:
    """Rejects foreign host names (DNS rebinding) and all requests of pages of other origins.

    A browser sends a user's login with every request, whichever page makes it, and all ports of one host name are one site to
    it. A link to MLflow may be followed from any page; no other request of another page passes.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        if wrong := [origin for origin in origins if not _ORIGIN.fullmatch(origin)]:
            raise MlstackError(
                f"{', '.join(wrong)} in MLFLOW_SERVER_CORS_ALLOWED_ORIGINS is no origin.",
                "Pages of these origins may use MLflow with the browser's login, so they are compared character by character.",
                "write each as scheme://host:port, in lower case, without * and without a path",
            )
        self._app, self._hosts, self._origins = app, list(hosts), frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # MLflow has none
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not is_health_endpoint(scope["path"]) and not is_allowed_host_header(self._hosts, headers.get("host", "")):
            await PlainTextResponse(INVALID_HOST_MSG, 403)(scope, receive, send)
        elif self._is_foreign(scope, headers):
            await PlainTextResponse(
                "Cross-origin request blocked: it comes from a page that is not MLflow's, and would use your login."
                f" Open MLflow at {' or '.join(sorted(self._origins))}.",
                403,
            )(scope, receive, send)
        else:
            await self._app(scope, receive, _for_own_pages(send))

    def _is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether a page of another origin makes this request. Clients that are no browser send neither header."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None:
            return origin not in self._origins
        if site in ("none", "same-origin"):
            return False
        is_link = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        frame = headers.get("sec-fetch-dest")
        # MLflow's trace view is made to be embedded in notebooks: static files without data.
        is_shown = frame == "document" or (frame == "iframe" and scope["path"].startswith(TRACE_RENDERER_ASSET_PATH))
        return not (is_link and is_shown)


class Login:
    """Lets a request pass with an account; public paths pass without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        auth.set_caller(None)  # remove that of the previous request on the same connection
        headers = Headers(scope=scope)
        if auth.is_public(scope["path"]) or _is_preflight(scope, headers):
            await self._app(scope, replayed(b"", receive), send)
            return
        try:
            caller = await auth.log_in(headers, (scope.get("client") or ("",))[0], scope["path"])
        except TooManyLoginsError as error:
            answer = _error(429, "REQUEST_LIMIT_EXCEEDED", "Too many logins are being checked. Try again in a few seconds.")
            answer.headers["Retry-After"] = str(error.retry_after)
            await answer(scope, receive, send)
        except MlflowException as error:
            await auth.error_response(error)(scope, receive, send)
        else:
            if caller is None:
                await auth.unauthenticated()(scope, receive, send)
            elif not auth.may_call(caller, scope["method"], scope["path"]):
                await _error(403, "PERMISSION_DENIED", f"The account {caller.username} can only read.")(scope, receive, send)
            else:
                auth.set_caller(caller)
                await self._app(scope, receive, send)


class Bodies:
    """Reads a body to its end before the request is passed on; an upload of an artifact is streamed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "PUT" and scope["path"].startswith(UPLOADS):
            await self._app(scope, _timed(receive), send)
        elif (body := await read(scope, receive, send)) is None:
            return
        elif not auth.may_tag(scope["path"], body):
            message = f"This account can only read, and set tags that begin with {auth.TAG_PREFIX} on model versions."
            await _error(403, "PERMISSION_DENIED", message)(scope, receive, send)
        else:
            await self._app(scope, replayed(body, receive), send)


async def read(scope: Scope, receive: Receive, send: Send) -> bytes | None:
    """The whole body. None when it was rejected and answered, or when the client has disconnected."""
    try:
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > LARGEST_BODY:
            raise _too_large()
        timed, chunks, size = _timed(receive), [], 0
        message: Message = {"more_body": True}
        while message.get("more_body", False):
            message = await timed()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > LARGEST_BODY:
                raise _too_large()
        body = b"".join(chunks)
        _reject_nul(scope, body)
    except HTTPException as error:
        await _error(error.status_code, "INVALID_PARAMETER_VALUE", error.detail)(scope, receive, send)
        return None
    return body


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` for an application whose body has been read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _timed(receive: Receive) -> Receive:
    """Receives a body within its time: only the client's time counts, not the server's."""
    waited, size, complete = 0.0, 0, False

    async def next_message() -> Message:
        nonlocal waited, size, complete
        if complete:
            return await receive()
        started = time.monotonic()
        try:
            async with asyncio.timeout(BODY_SECONDS + size / SLOWEST - waited):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"The request's body takes too long: {size} bytes so far.") from None
        waited += time.monotonic() - started
        size += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        return message

    return next_message


def _reject_nul(scope: Scope, body: bytes) -> None:
    """Postgres has no text with the character NUL; MLflow would answer 500. Raises HTTPException 400."""
    is_json = Headers(scope=scope).get("content-type", "").startswith("application/json")
    if "\0" in scope["path"] or b"%00" in scope["query_string"] or (is_json and _NUL.search(body)):
        raise HTTPException(400, "The request contains the character NUL, which the database cannot store.")


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    """A browser's preflight, without a login: MLflow answers from its list of origins only."""
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _for_own_pages(send: Send) -> Send:
    """Browsers keep such an answer from pages of other origins, also if they do not send the page's origin."""

    async def with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers.setdefault("X-Content-Type-Options", "nosniff")
        await send(message)

    return with_policy


def _too_large() -> HTTPException:
    return HTTPException(
        413, f"The request's body is larger than {LARGEST_BODY >> 20} MiB. Log less in one call, or log a file as an artifact."
    )


def _error(status: int, code: str, message: str) -> Response:
    """An error in MLflow's own format."""
    return Response(json.dumps({"error_code": code, "message": message}), status, media_type="application/json")
