"""MLflow's accounts, for its server: a database that does not answer is not a wrong password.

On the routes of artifacts MLflow 3.17 takes any failure to look an account up for a refusal and answers 401, after which no
client tries again: an upload during a restart of Postgres would fail. Here it is 503, as on every other route.
"""

from typing import Any

from mlflow.server import auth
from starlette.requests import Request
from werkzeug.datastructures import Authorization


def create_app(*arguments: Any) -> Any:
    """MLflow's own application with accounts. Registered as `mlstack` through MLflow's entry point."""
    auth._authenticate_fastapi_request = _authenticate
    return auth.create_app(*arguments)


def _authenticate(request: Request) -> Any:
    """The user, or None when the login is wrong. Raises MlflowException when the database does not answer."""
    login = Authorization.from_header(request.headers.get("Authorization"))
    if login is None or login.type != "basic":
        return None
    return auth._authenticate_cached(login.username or "", login.password or "")
