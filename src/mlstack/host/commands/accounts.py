"""`make user` and `make user-remove`: people's accounts in MLflow, through its own API."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.stack import Stack

PASSWORD_BYTES = 16
TIMEOUT = 30  # seconds
OK, CONFLICT, NOT_FOUND, UNAUTHORIZED = 200, 400, 404, 401


def add(stack: Stack, name: str) -> str:
    """Creates an account without special rights and returns its generated password.

    Raises MlstackError when the name exists or is invalid, and when MLflow does not answer.
    """
    if complaint := settings.VARIABLES["MLFLOW_TRACKING_USERNAME"].check(name):
        raise MlstackError(f"{name!r}: {complaint}.", "MLflow could not tell it from its password.", "make user NAME=…")
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    status, message = _call(stack.values, "POST", "users/create", {"username": name, "password": password})
    if status == CONFLICT and "already exists" in message:
        raise MlstackError(
            f"the account {name} exists already.", "Its password is not kept anywhere.", f"make user-remove NAME={name} first"
        )
    _expect(status, message, f"the account {name} could not be made")
    return password


def remove(stack: Stack, name: str) -> None:
    """Removes an account; what it logged is kept. Raises MlstackError if it does not exist or the stack itself uses it."""
    if name in (stack.values["MLFLOW_ADMIN_USERNAME"], stack.values["MLFLOW_TRACKING_USERNAME"]):
        raise MlstackError(f"{name} is an account of the stack itself.", "Nothing would work without it.", "name a person's")
    status, message = _call(stack.values, "DELETE", "users/delete", {"username": name})
    if status == NOT_FOUND:
        raise MlstackError(f"there is no account {name}.", "Nothing was removed.", "check NAME")
    _expect(status, message, f"the account {name} could not be removed")


def _call(values: Mapping[str, str], method: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and text of MLflow's answer to its admin."""
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
        body=json.dumps(body),
    )
    return answer.status, answer.data.decode(errors="replace")


def _expect(status: int, message: str, wrong: str) -> None:
    if status == UNAUTHORIZED:
        raise MlstackError(
            f"{wrong}: MLflow rejects its admin.", "MLFLOW_ADMIN_PASSWORD in .env is not the one MLflow has.", "make up"
        )
    if status != OK:
        raise MlstackError(f"{wrong}.", f"MLflow answered {status}: {message[:200]}", "make logs SERVICE=mlflow")
