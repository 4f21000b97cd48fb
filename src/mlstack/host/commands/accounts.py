"""`make user` and `make user-remove`: people's accounts in MLflow, through its own API."""

import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from mlstack import settings
from mlstack.errors import MlstackError

PASSWORD_BYTES = 16
TIMEOUT = 30  # seconds
OK, NOT_FOUND, UNAUTHORIZED = 200, 404, 401


def exists(project: Path, name: str) -> bool:
    """Whether MLflow has this account. Raises MlstackError for a name that cannot be one, and when MLflow does not answer."""
    values = settings.of_project(project)
    if complaint := settings.VARIABLES["MLFLOW_TRACKING_USERNAME"].check(name):
        raise MlstackError(f"{name!r}: {complaint}.", "MLflow could not tell it from its password.", "make user NAME=…")
    status, message = _call(values, "GET", f"users/get?{urlencode({'username': name})}")
    if status == NOT_FOUND:
        return False
    _expect(status, message, f"the account {name} could not be looked up")
    return True


def add(project: Path, name: str) -> str:
    """Makes an account without special rights and returns its generated password. Raises MlstackError when it cannot be made."""
    return _with_password(project, name, "POST", "users/create", f"the account {name} could not be made")


def renew_password(project: Path, name: str) -> str:
    """Gives an account another password and returns it. Raises MlstackError for an account of the stack itself."""
    _require_persons(project, name, "make rotate replaces its password")
    return _with_password(project, name, "PATCH", "users/update-password", f"{name} could not be given another password")


def _with_password(project: Path, name: str, method: str, path: str, wrong: str) -> str:
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    status, message = _call(settings.of_project(project), method, path, {"username": name, "password": password})
    _expect(status, message, wrong)
    return password


def _require_persons(project: Path, name: str, fix: str) -> None:
    values = settings.of_project(project)
    if name in (values["MLFLOW_ADMIN_USERNAME"], values["MLFLOW_TRACKING_USERNAME"]):
        raise MlstackError(f"{name} is an account of the stack itself.", "Nothing would work without it.", fix)


def require_removable(project: Path, name: str) -> None:
    """Raises MlstackError when there is no such account, or when the stack itself uses it."""
    _require_persons(project, name, "name a person's")
    if not exists(project, name):
        raise MlstackError(f"there is no account {name}.", "Nothing was removed.", "check NAME")


def remove(project: Path, name: str) -> None:
    """Removes an account; what it logged stays. Raises MlstackError as require_removable does."""
    require_removable(project, name)
    status, message = _call(settings.of_project(project), "DELETE", "users/delete", {"username": name})
    _expect(status, message, f"the account {name} could not be removed")


def _call(values: dict[str, str], method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """The status and text with which MLflow answers its admin."""
    if values["MLFLOW_AUTH"] == "off":
        raise MlstackError("MLFLOW_AUTH is off.", "Nobody is asked for an account.", "set MLFLOW_AUTH=on in .env, then make up")
    admin = settings.admin_account(values)
    headers = urllib3.make_headers(basic_auth=f"{admin.username}:{admin.password}") | {"Content-Type": "application/json"}
    try:
        answer = urllib3.request(
            method,
            f"{values['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/{path}",
            body=json.dumps(body) if body else None,
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
