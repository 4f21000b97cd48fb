"""Who may use the service: programs with a key, at its own names, and no page of a browser.

A key is checked before anything of the body is read. Keys are random, so that their plain hash is enough, and only their hashes
are stored. Each service instance reads them again when the file changes.

python3 -m mlstack.scoring.access add|remove|list NAME, which make key runs in the container.
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

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FILE = Path("/models/keys.json")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
BYTES = 32  # of a key
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
        """Gives a client a new key, in place of the one that it has, and returns it."""
        key = f"mls_{secrets.token_urlsafe(BYTES)}"
        self._write({**self.digests(), name: _digest(key)})
        return key

    def remove(self, name: str) -> bool:
        """Takes a client's key away; False if it has none."""
        digests = dict(self.digests())
        removed = digests.pop(name, None)
        self._write(digests)
        return removed is not None

    def _write(self, digests: Mapping[str, str]) -> None:
        beside = self._path.with_suffix(".part")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(digests, file)
            file.flush()
            os.fsync(descriptor)
        beside.replace(self._path)


class Guard:
    """Lets a request pass with a key. Checks come in the order of their cost; none reads the body."""

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Collection[str]) -> None:
        self._app, self._keys, self._hosts = app, keys, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there is none
        elif scope["type"] == "http" and (problem := self._problem(scope, Headers(scope=scope))):
            await problem(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if headers.get("host", "").lower() not in self._hosts:
            return error(403, "PERMISSION_DENIED", f"The service answers at {', '.join(sorted(self._hosts))} only.")
        if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return error(403, "PERMISSION_DENIED", "Pages in a browser cannot use this service.")
        if scope["path"] in PUBLIC:
            return None
        client = self._keys.client(_key_of(headers.get("authorization", "")))
        if client is None:
            answer = error(401, "UNAUTHENTICATED", "The request has no valid key: make key NAME=… generates one.")
            answer.headers["WWW-Authenticate"] = "Bearer"
            return answer
        scope.setdefault("state", {})["client"] = client
        return None


def error(status: int, code: str, message: str, **details: object) -> JSONResponse:
    """An error in MLflow's format."""
    return JSONResponse({"error_code": code, "message": message, **details}, status)


def hosts(port: int) -> Collection[str]:
    """The names of the service in requests: inside the stack, and on the host. Others may be DNS rebinding."""
    on_the_host = ("127.0.0.1", "localhost", "scoring.localhost")
    return {"scoring", "scoring:8000", "localhost", *(f"{name}:{port}" for name in on_the_host)}


def _key_of(authorization: str) -> str:
    """The key in a header: as a bearer's token, or as the password of basic authentication, as MLflow's client sends it."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def main(action: str, name: str) -> int:
    """Prints the new key, or exits with 1 where there is none to remove."""
    if not NAME.fullmatch(name):
        return 2
    if action == "add":
        sys.stdout.write(Keys().add(name) + "\n")
        return 0
    return 0 if Keys().remove(name) else 1


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(*sys.argv[1:3]))
