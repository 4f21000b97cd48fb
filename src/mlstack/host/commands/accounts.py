"""`make user` and `make user-remove`: people's accounts in MLflow, through its own API."""

import json
import secrets
from pathlib import Path
from typing import Any

import urllib3

from mlstack import settings
from mlstack.errors import MlstackError

PASSWORD_BYTES = 16
TIMEOUT = 30  # seconds
OK, CONFLICT, NOT_FOUND, UNAUTHORIZED = 200, 400, 404, 401


def add(project: Path, name: str) -> str:
    """Makes an account without special rights and returns its generated password.

    Raises MlstackError when the name is taken or cannot be one, and when MLflow does not answer.
    """
    values = settings.of_project(project)
    if complaint := settings.VARIABLES["MLFLOW_TRACKING_USERNAME"].check(name):
        raise MlstackError(f"{name!r}: {complaint}.", "MLflow could not tell it from its password.", "make user NAME=…")
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    status, message = _call(values, "POST", "users/create", {"username": name, "password": password})
    if status == CONFLICT and "already exists" in message:
        raise MlstackError(
            f"the account {name} exists already.", "Its password is not kept anywhere.", f"make user-remove NAME={name} first"
        )
    _expect(status, message, f"the account {name} could not be made")
    return password


def remove(project: Path, name: str) -> None:
    """Removes an account; what it logged stays. Raises MlstackError when there is none, or when the stack itself uses it."""
    values = settings.of_project(project)
    if name in (values["MLFLOW_ADMIN_USERNAME"], values["MLFLOW_TRACKING_USERNAME"]):
        raise MlstackError(f"{name} is an account of the stack itself.", "Nothing would work without it.", "name a person's")
    status, message = _call(values, "DELETE", "users/delete", {"username": name})
    if status == NOT_FOUND:
        raise MlstackError(f"there is no account {name}.", "Nothing was removed.", "check NAME")
    _expect(status, message, f"the account {name} could not be removed")


def _call(values: dict[str, str], method: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and text with which MLflow answers its admin."""
    if values["MLFLOW_AUTH"] == "off":
        raise MlstackError("MLFLOW_AUTH is off.", "Nobody is asked for an account.", "set MLFLOW_AUTH=on in .env, then make up")
    admin = settings.admin_account(values)
    headers = urllib3.make_headers(basic_auth=f"{admin.username}:{admin.password}") | {"Content-Type": "application/json"}
    try:
        answer = urllib3.request(
            method,
            f"{values['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}",
            body=json.dumps(body),
            headers=headers,
            timeout=TIMEOUT,
            retries=False,
        )
    except urllib3.exceptions.HTTPError as error:
        raise MlstackError("MLflow does not answer.", f"It keeps the accounts ({error}).", "make up") from error
    return answer.status, answer.data.decode(errors="replace")


def _expect(status: int, message: str, wrong: str) -> None:
    if status == UNAUTHORIZED:
        raise MlstackError(f"{wrong}: MLflow refuses its admin.", "MLFLOW_ADMIN_PASSWORD in .env is not its own.", "make up")
    if status != OK:
        raise MlstackError(f"{wrong}.", f"MLflow answered {status}: {message[:200]}", "make logs SERVICE=mlflow")
