"""`make user` and `make user-remove`: people's accounts in MLflow, through its own API."""

import json
import secrets
from typing import Any
from urllib.parse import urlencode

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.stack import Stack

PASSWORD_BYTES = 16
TIMEOUT = 30  # seconds
OK, NOT_FOUND, UNAUTHORIZED = 200, 404, 401


def exists(stack: Stack, name: str) -> bool:
    """Whether MLflow has this account. Raises MlstackError for an invalid name, and when MLflow does not answer."""
    if complaint := settings.VARIABLES["MLFLOW_TRACKING_USERNAME"].check(name):
        raise MlstackError(f"{name!r}: {complaint}.", "MLflow could not tell it from its password.", "make user NAME=…")
    status, message = _call(stack, "GET", f"users/get?{urlencode({'username': name})}")
    if status == NOT_FOUND:
        return False
    _expect(status, message, f"the account {name} could not be looked up")
    return True


def add(stack: Stack, name: str) -> str:
    """Creates an account without special rights and returns its generated password. Raises MlstackError if MLflow does not."""
    return _with_password(stack, name, "POST", "users/create", f"the account {name} could not be created")


def renew_password(stack: Stack, name: str) -> str:
    """Gives an account another password and returns it. Raises MlstackError for an account of the stack itself."""
    _require_persons(stack, name, "make rotate replaces its password")
    return _with_password(stack, name, "PATCH", "users/update-password", f"{name} could not be given another password")


def _with_password(stack: Stack, name: str, method: str, path: str, wrong: str) -> str:
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    status, message = _call(stack, method, path, {"username": name, "password": password})
    _expect(status, message, wrong)
    return password


def _require_persons(stack: Stack, name: str, fix: str) -> None:
    if name in {stack.values[key] for key in ("MLFLOW_ADMIN_USERNAME", "MLFLOW_TRACKING_USERNAME", "SCORING_USERNAME")}:
        raise MlstackError(f"{name} is an account of the stack itself.", "Nothing would work without it.", fix)


def require_removable(stack: Stack, name: str) -> None:
    """Raises MlstackError if there is no such account, or the stack itself uses it."""
    _require_persons(stack, name, "name a person's")
    if not exists(stack, name):
        raise MlstackError(f"there is no account {name}.", "Nothing was removed.", "check NAME")


def remove(stack: Stack, name: str) -> None:
    """Removes an account; what it logged is kept. Raises MlstackError as require_removable does."""
    require_removable(stack, name)
    status, message = _call(stack, "DELETE", "users/delete", {"username": name})
    _expect(status, message, f"the account {name} could not be removed")


def _call(stack: Stack, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """The status and text of MLflow's answer to its admin."""
    values = stack.values
    if values["MLFLOW_AUTH"] == "off":
        raise MlstackError("MLFLOW_AUTH is off.", "Nobody is asked for an account.", "set MLFLOW_AUTH=on in .env, then make up")
    answer = http.call(
        "MLflow",
        method,
        f"{values['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}",
        why="It keeps the accounts.",
        timeout=TIMEOUT,
        account=settings.admin_account(values),
        headers={"Content-Type": "application/json"},
        body=json.dumps(body) if body else None,
    )
    return answer.status, answer.data.decode(errors="replace")


def _expect(status: int, message: str, wrong: str) -> None:
    if status == UNAUTHORIZED:
        raise MlstackError(
            f"{wrong}: MLflow rejects its admin.", "MLFLOW_ADMIN_PASSWORD in .env is not the one MLflow has.", "make up"
        )
    if status != OK:
        raise MlstackError(f"{wrong}.", f"MLflow answered {status}: {message[:200]}", "make logs SERVICE=mlflow")
