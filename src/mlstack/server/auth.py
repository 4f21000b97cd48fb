"""MLflow's accounts, for its server: who asks, and whether they may. MLflow decides; what it looks up is looked up here.

A database that does not answer is not a wrong password. On the routes of artifacts MLflow 3.17 takes any failure to look an
account up for a refusal and answers 401, after which no client tries again: an upload during a restart of Postgres would
fail. Here it is 503, as on every other route.

For each call MLflow loads the account twice with all it has, and the run with all its metrics, parameters and tags, to learn
three things: whether the account is an admin's, what it was granted, which experiment the run is in. Here these are asked for
alone: 6 ms of a call's 11 become 1. Nothing is remembered: what is revoked is refused at the next call, as before.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from mlflow.server import auth as mlflow_auth
from mlflow.server.handlers import _get_tracking_store
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME
from sqlalchemy import TextClause, text
from starlette.requests import Request
from werkzeug.datastructures import Authorization

from mlstack import settings

auth: Any = mlflow_auth  # more of it is used than it exports: to be read again at each of MLflow's upgrades


def with_accounts(flask_app: Any) -> Any:
    """MLflow's own application with accounts."""
    auth._authenticate_fastapi_request = authenticate
    auth._run_requirement = _run_requirement
    auth.resolve_permissions = _permissions
    auth._redact_run_response = _redact_runs
    auth.sender_is_admin = lambda: _is_admin(auth.authenticate_request().username)
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


def known(request: Request) -> str | None:
    """Whose request it is if that is known without looking it up: this password was right within the last minute."""
    login = Authorization.from_header(request.headers.get("Authorization"))
    if login is None or login.type != "basic":
        return None
    with auth._USER_AUTH_CACHE_LOCK:
        user = auth._USER_AUTH_CACHE.get(auth._auth_cache_key(login.username or "", login.password or ""))
    return str(user.username) if user else None


def may_log(username: str | None, experiment: str) -> bool:
    """Whether this account (None: nobody is asked) may log to the runs of an experiment."""
    return username is None or bool(auth.authorize(username, *_on_runs_of(experiment, "update"))) or _is_admin(username)


def hidden(username: str, experiments: Sequence[str]) -> list[str]:
    """Those of the experiments whose runs this account may not see."""
    not_denied = auth.Requirement(auth.RESOURCE_TYPE_RUN, "*", auth.ACTION_NOT_DENIED)
    may_read = auth._role_based_read_predicate(username, "experiment", also_require=[not_denied])
    return [experiment for experiment in experiments if not may_read(experiment)]


_GRANTS = text(
    "SELECT is_admin, resource_type, resource_pattern, permission FROM users"
    " LEFT JOIN (user_role_assignments JOIN roles ON roles.id = role_id AND workspace = :workspace"
    " JOIN role_permissions ON role_permissions.role_id = roles.id) ON user_id = users.id WHERE username = :username"
)
_EXPERIMENT = text("SELECT experiment_id::text AS experiment_id FROM runs WHERE run_uuid = :run")


def _rows(store: Any, query: TextClause, **values: object) -> Sequence[Any]:
    """From the pool of one of MLflow's stores, as one statement without a transaction around it."""
    with store.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        found: Sequence[Any] = connection.execute(query, values).all()
    return found


def _grants(username: str, workspace: str = DEFAULT_WORKSPACE_NAME) -> Sequence[Any]:
    return _rows(auth.store, _GRANTS, username=username, workspace=workspace)


def _is_admin(username: str) -> bool:
    return any(row.is_admin for row in _grants(username))


def _permissions(username: str, workspace: str, keys: Sequence[Any]) -> list[Any]:
    """In the place of MLflow's resolve_permissions: the permission at each key, None where there is no grant."""
    grants = [auth.RoleGrantRow(*row[1:]) for row in _grants(username, workspace) if row.resource_type]
    if any(map(auth.is_workspace_admin_grant, grants)):
        return [auth.MANAGE] * len(keys)
    return [auth.fold_grants_for_key(grants, key) for key in keys]


def _run_requirement(run: str, action: str) -> Any:
    """In the place of MLflow's own: where to look for a permission, and what it must be; None for an unknown run."""
    found = _rows(_get_tracking_store(), _EXPERIMENT, run=run)
    return _on_runs_of(found[0].experiment_id, action) if found else None


_redact_run_response = auth._redact_run_response


def _redact_runs(response: Any, message: Any, runs_of: Any) -> None:
    """MLflow reads every answer with runs once more, to take out links to models. Only for whom models are denied."""
    models = auth.RESOURCE_TYPE_LOGGED_MODEL
    if models in auth._denied_sibling_tiers(auth.authenticate_request().username, (models,)):
        _redact_run_response(response, message, runs_of)


def _on_runs_of(experiment: str, action: str) -> Any:
    container = (auth.RESOURCE_TYPE_EXPERIMENT, experiment)
    return container, [
        auth.Requirement(*container, "read"),
        auth.Requirement(auth.RESOURCE_TYPE_RUN, "*", action, fallback_if_no_grant=(container,)),
    ]
