"""MLflow's accounts, for its server: who asks, and whether they may.

A database that does not answer is not a wrong password. On the routes of artifacts MLflow 3.17 takes any failure to look an
account up for a refusal and answers 401, after which no client tries again: an upload during a restart of Postgres would
fail. Here it is 503, as on every other route.
"""

from typing import Any

from fastapi import HTTPException
from mlflow.server import auth
from starlette.requests import Request
from werkzeug.datastructures import Authorization

from mlstack import settings


def with_accounts(flask_app: Any) -> Any:
    """MLflow's own application with accounts."""
    auth._authenticate_fastapi_request = authenticate
    return auth.create_app(flask_app)


def authenticate(request: Request) -> Any:
    """The user, or None when the login is wrong. Raises MlflowException when the database does not answer."""
    login = Authorization.from_header(request.headers.get("Authorization"))
    if login is None or login.type != "basic":
        return None
    return auth._authenticate_cached(login.username or "", login.password or "")


def asker(request: Request) -> Any:
    """Whose request it is, for the routes of this project; None where nobody is asked (MLFLOW_AUTH=off).

    Raises HTTPException 401 when the login is wrong, MlflowException when the database does not answer.
    """
    if not settings.accounts_are_on():
        return None
    user = authenticate(request)
    if user is None:
        raise HTTPException(401, "You are not authenticated.", {"WWW-Authenticate": 'Basic realm="mlflow"'})
    return user
