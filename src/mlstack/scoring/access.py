"""Who may use the service: programs with a key, accounts of MLflow, at its own names, and no page of a browser.

A key scores; an account also reads decisions and changes what decides.

A key is checked before anything of the body is read. Keys are random, so that their plain hash is enough, and only their hashes
are stored: in Postgres, so that a backup has them, and on the service's volume, so that they work while Postgres is down.
The service reads the file again when it changes.

python3 -m mlstack.scoring.access add|remove NAME, which make key runs in the container; list for make doctor.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from psycopg2.extensions import cursor as Cursor  # noqa: N812
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.postgres import connected
from mlstack.scoring import files
from mlstack.scoring.accounts import Accounts, AccountsError
from mlstack.scoring.rates import Rates

FILE = Path("/models/keys.json")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
BYTES = 32  # of a key
DEADLINE = 10  # seconds for Postgres, while somebody waits
PUBLIC = ("/", "/ping", "/health", "/version", "/v2/health/live", "/v2/health/ready")


class Keys:
    """The clients that have a key, by the hash of their key."""

    def __init__(self, path: Path = FILE) -> None:
        self._path = path
        self._read_at = -1
        self._names: dict[str, str] = {}

    def client(self, key: str) -> str | None:
        """The name of the client that has this key."""
        changed_at = self._path.stat().st_mtime_ns if self._path.exists() else 0
        if changed_at != self._read_at:
            self._read_at, self._names = changed_at, {digest: name for name, digest in self.digests().items()}
        return self._names.get(_digest(key))

    def digests(self) -> Mapping[str, str]:
        """The hash of each client's key."""
        if not self._path.exists():
            return {}
        digests: Mapping[str, str] = json.loads(self._path.read_text(encoding="utf-8"))
        return digests

    def add(self, name: str) -> str:
        """Gives a client a new key, in place of the one that it has, and returns it. The caller stores its hash in Postgres."""
        key = f"mls_{secrets.token_urlsafe(BYTES)}"
        self.replace({**self.digests(), name: _digest(key)})
        return key

    def replace(self, digests: Mapping[str, str]) -> None:
        """Writes the hash of each client's key."""
        if digests == self.digests():
            return
        files.write(self._path, json.dumps(digests))


class Guard:
    """Lets a request pass with a key. Checks come in the order of their cost; none reads the body."""

    def __init__(self, app: ASGIApp, keys: Keys, accounts: Accounts, hosts: Collection[str], rates: Rates) -> None:
        self._app, self._keys, self._accounts, self._hosts, self._rates = app, keys, accounts, frozenset(hosts), rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there is none
        elif scope["type"] == "http" and (problem := await self._problem(scope, Headers(scope=scope))):
            await problem(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _problem(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if foreign := self._foreign(headers):
            return foreign
        if scope["path"] in PUBLIC:
            return None
        name, secret = _login_of(headers.get("authorization", ""))
        client = self._keys.client(secret)
        try:
            is_account = client is None and await self._accounts.has(name, secret)
        except AccountsError as problem:
            answer = error(503, "TEMPORARILY_UNAVAILABLE", "MLflow cannot check the password now. Try again.")
            answer.headers["Retry-After"] = str(problem.retry_after)
            return answer
        if client is None and not is_account:
            answer = error(401, "UNAUTHENTICATED", "The request has no valid key: make key NAME=… generates one.")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        if not self._rates.admits(client or name):
            answer = error(
                429, "RESOURCE_EXHAUSTED", "This client sends more requests in a second than SCORING_RATE in .env. Try again."
            )
            answer.headers["Retry-After"] = "1"
            return answer
        scope.setdefault("state", {}).update(client=client or name, is_account=is_account)
        return None

    def _foreign(self, headers: Headers) -> JSONResponse | None:
        """Denies other names of the service, and pages of a browser."""
        if headers.get("host", "").lower() not in self._hosts:
            return error(403, "PERMISSION_DENIED", f"The service answers at {', '.join(sorted(self._hosts))} only.")
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return error(403, "PERMISSION_DENIED", "Pages in a browser cannot use this service.")
        return None


def error(status: int, code: str, message: str, **details: object) -> JSONResponse:
    """An error in MLflow's format; clients of the V2 protocol read its text in the field `error`."""
    return JSONResponse({"error_code": code, "message": message, "error": message, **details}, status)


def hosts(port: int, others: Collection[str] = ()) -> Collection[str]:
    """The names of the service in requests: inside the stack, on the host, and `others`. Any other may be DNS rebinding."""
    on_the_host = ("127.0.0.1", "localhost", "scoring.localhost")
    return {"scoring", "scoring:8000", "localhost", *(f"{name}:{port}" for name in on_the_host), *others}


def account_of(request: Request) -> str:
    """The account that makes a request. Raises HTTPException 403 for a client with a key."""
    if not request.state.is_account:
        raise HTTPException(403, "A key only scores: this needs the name and password of an account of MLflow.")
    return str(request.state.client)


def _login_of(authorization: str) -> tuple[str, str]:
    """A name and a key or password: a key as a bearer's token, or either as basic authentication, as MLflow's client sends it."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", value.strip() if scheme.lower() == "bearer" else ""
    try:
        name, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, secret


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys_in(cursor: Cursor) -> dict[str, str]:
    """The hash of each client's key, in Postgres."""
    cursor.execute("SELECT name, digest FROM serving.current_keys")
    return dict(cursor.fetchall())


def main(action: str, name: str = "") -> int:
    """Prints the new key, or exits with 1 where there is none to remove. Raises MlstackError if Postgres does not answer."""
    keys = Keys()
    if action == "list":
        sys.stdout.write("\n".join(sorted(keys.digests())))
        return 0
    if not NAME.fullmatch(name):
        return 2
    with connected(settings.scoring_login(), DEADLINE) as connection, connection.cursor() as cursor:
        stored = keys_in(cursor)
        keys.replace(stored)
        if action == "remove" and name not in stored:
            return 1
        if action == "add":
            sys.stdout.write(keys.add(name) + "\n")
        else:
            keys.replace({other: digest for other, digest in stored.items() if other != name})
        cursor.execute("INSERT INTO serving.keys (name, digest) VALUES (%s, %s)", (name, keys.digests().get(name)))
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    try:
        sys.exit(main(*sys.argv[1:3]))
    except MlstackError as problem:
        sys.exit(f"{problem.wrong} {problem.why}")
