"""MLflow's accounts, in its server: the caller and its permissions. MLflow decides; this module reads what it decides from.

`log_in` identifies the caller once for each request (guard.Login calls it before anything else runs); MLflow's own routes
and those of this project get it from `caller`.

A database that does not answer is not a wrong password. On the routes of artifacts MLflow 3.17 treats any failure to read
an account as a wrong password and answers 401, after which no client retries: an upload during a restart of Postgres would
fail. Here the answer is 503.

For each call MLflow loads the account twice with everything it owns, and the run with all its metrics, parameters and tags,
to learn three things: whether the account is an admin's, its grants, and the run's experiment. Here only these are read: 6 ms
of a call's 11 become 1. Only the fact that a password matches a hash is cached; the account, its hash and its permissions are
read at each call, so that a removed account, a changed password or a revoked permission takes effect at once.
"""

import hmac
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any

import psycopg2
from cachetools import TTLCache
from fastapi import Depends, HTTPException
from mlflow.exceptions import MlflowException
from psycopg2.extras import NamedTupleCursor
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from werkzeug.datastructures import Authorization
from werkzeug.security import check_password_hash, generate_password_hash

from mlstack import settings
from mlstack.server import passwords, upstream
from mlstack.server.throttle import Throttle
from mlstack.server.upstream import Requirement, Validator

CHALLENGE = 'Basic realm="mlflow"'


# Compared with the passwords of unknown accounts, which so take as long as those of existing ones.
_NOBODY = generate_password_hash(secrets.token_urlsafe())
_KEY = secrets.token_bytes(32)
DEFAULT_EXPERIMENT = 0
MODEL_ROUTES = "/gateway/"  # of the AI gateway: requests to models
OPTIMIZATION_ROUTES = "/mlflow/prompt-optimization/jobs/"  # of one job
# The one thing that the scoring service's account may change: tags of this prefix, on model versions.
TAG_PREFIX = "mlstack.scoring."
TAG_ROUTE = "/api/2.0/mlflow/model-versions/set-tag"
READING_ROUTES = ("/api/2.0/mlstack/artifacts/links-to-read",)  # that change nothing, although they are no GET


@dataclass(frozen=True)
class Caller:
    """The account of a request. Read from the database for this request, as the only source of `is_admin`."""

    id: int
    username: str
    is_admin: bool


@dataclass(frozen=True)
class Login:
    """A name whose password was right, and the hash that it was checked against."""

    username: str
    password_hash: str


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
_known: TTLCache[tuple[str, bytes], Login] = TTLCache(
    upstream.auth_config.auth_cache_max_size, upstream.auth_config.auth_cache_ttl_seconds
)
_throttle = Throttle()


def with_accounts(flask_app: Any) -> Any:
    """MLflow's own application with accounts. guard.Login identifies the caller before it."""
    upstream.replace_login(lambda _: _caller.get(), _caller_of_flask, lambda: caller().is_admin)
    upstream.replace_permissions(_find_validator, _permissions, _run_requirement, _redact_runs)
    app = upstream.app_with_accounts(flask_app)
    upstream.replace_passwords(_with_good_password)
    return app


def caller() -> Caller:
    """The account of this request. Raises HTTPException 401 without a login."""
    current = _caller.get()
    if current is None:
        raise HTTPException(401, "You are not authenticated.", {"WWW-Authenticate": CHALLENGE})
    return current


def set_caller(account: Caller | None) -> None:
    """Sets the account for the rest of this request."""
    _caller.set(account)


async def caller_or_none() -> Caller | None:  # async: FastAPI would start a thread for it
    """The account of this request, for the routes of this project; None without accounts (MLFLOW_AUTH=off)."""
    return caller() if settings.accounts_are_on() else None


CallerOrNone = Annotated[Caller | None, Depends(caller_or_none)]


def is_public(path: str) -> bool:
    """Whether a path needs no login: static files, the health check, and the server's features."""
    return bool(upstream.is_unprotected_route(path))


def known(headers: Mapping[str, str]) -> Login | None:
    """The login of a request that may write, if its password was right before. `may_log` checks whether it still is."""
    credentials = _credentials(headers)
    is_writer = credentials and credentials[0] != settings.reading_username()
    return _known.get(_key(*credentials)) if credentials and is_writer else None


async def log_in(headers: Mapping[str, str], address: str, path: str) -> Caller | None:
    """The account of a request, None when the login is missing or wrong.

    A job has no password of the account that started it: in the part `gateway`, and only to use a model, its token is enough.

    Raises MlflowException when the database does not answer, TooManyLoginsError when too many logins of this client wait.
    """
    credentials = _credentials(headers)
    if credentials is None:
        return None
    name, password = credentials
    row = await run_in_threadpool(_account, name)
    if not password:  # the healthcheck sends none, to see whether the database answers
        return None
    if row is not None and _is_job(path, password):
        return Caller(row.id, row.username, row.is_admin)
    key, password_hash = _key(name, password), row.password_hash if row else _NOBODY
    known = _known.get(key)
    if known is None or known.password_hash != password_hash:
        is_right = partial(check_password_hash, password_hash, password)
        if not await _throttle.check(name, address, key, is_right) or row is None:
            return None
        _known[key] = Login(name, password_hash)
    if row is None or upstream.is_disabled_legacy_admin_login(name, password, row):
        return None
    return Caller(row.id, row.username, row.is_admin)


def may_call(account: Caller, method: str, path: str) -> bool:
    """Whether an account may use a route at all: the scoring service's only reads, and tags model versions (`may_tag`).

    MLflow cannot express it: no grant lowers an account below the default permission, which is EDIT.
    """
    return account.username != settings.reading_username() or (method in ("GET", "HEAD") or path in (*READING_ROUTES, TAG_ROUTE))


def may_tag(path: str, body: bytes) -> bool:
    """Whether the caller may send this body: the scoring service's account sets tags of its own prefix only."""
    current = _caller.get()
    if path != TAG_ROUTE or current is None or current.username != settings.reading_username():
        return True
    try:
        key = json.loads(body)["key"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(key, str) and key.startswith(TAG_PREFIX)


def unauthenticated() -> Response:
    """MLflow's answer to a request without a login; a browser then asks for one."""
    return PlainTextResponse(
        "You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth/index.html#authenticating-to-mlflow"
        " on how to authenticate.",
        401,
        {"WWW-Authenticate": CHALLENGE},
    )


def error_response(error: MlflowException) -> Response:
    """An MLflow error in MLflow's own format."""
    return Response(error.serialize_as_json(), error.get_http_status_code(), media_type="application/json")


def may_log(login: Login | None, experiment: str) -> bool:
    """Whether a login is still valid and may log to the runs of an experiment; None (no accounts) always may."""
    if login is None:
        return True
    rows = _grants(login.username)
    if not rows or rows[0].password_hash != login.password_hash:
        return False
    _, requirements = _on_runs_of(experiment, "update")
    keys = upstream.requirements_to_grant_load_keys(requirements)
    permissions = dict(zip(keys, _resolved(rows, keys), strict=True))
    default, absent = upstream.auth_config.default_permission, upstream.absent_permission(upstream.DEFAULT_WORKSPACE_NAME)
    return rows[0].is_admin or all(upstream.requirement_satisfied(rule, permissions, default, absent) for rule in requirements)


def _credentials(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """The name and the password of a request."""
    try:
        login = Authorization.from_header(headers.get("Authorization"))
    except ValueError:  # it is no ASCII
        return None
    return (login.username or "", login.password or "") if login and login.type == "basic" else None


def _is_job(path: str, password: str) -> bool:
    """MLflow makes such a token for its own application alone, called basic-auth."""
    return (
        settings.is_gateway()
        and path.startswith(MODEL_ROUTES)
        and hmac.compare_digest(password.encode(), settings.job_token().encode())
    )


def _key(name: str, password: str) -> tuple[str, bytes]:
    """The cache key of a login: the password cannot be derived from it, not even by guessing."""
    return name, hmac.digest(_KEY, password.encode(), "sha256")


def _caller_of_flask() -> Any:
    """Replaces MLflow's own login on its Flask routes."""
    current = _caller.get()
    return Authorization("basic", {"username": current.username}) if current else upstream.make_basic_auth_response()


def _find_validator(request: Any) -> Validator | None:
    """The check of this request's permission: MLflow's own validator, and more for some routes."""
    validator = upstream.find_validator(request)
    if validator is None and OPTIMIZATION_ROUTES in request.path and request.url_rule:
        # MLflow knows it by the rule of the route, looks for the path, and so denies it to all but admins.
        validator = upstream.find_validator(SimpleNamespace(path=request.url_rule.rule, method=request.method))
    if validator in (upstream.may_update_password, upstream.may_manage_resource):
        validator = _unless_shared(validator)
    elif validator == upstream.may_delete_experiment:
        validator = _unless_default_experiment(validator)
    return validator and partial(_with_errors_explained, validator)


def _with_errors_explained(validator: Validator) -> bool:
    """MLflow reads permissions before it checks the types of parameters: a list for an id would be an error 500."""
    try:
        return validator()
    except (TypeError, ValueError, AttributeError) as error:
        raise MlflowException.invalid_parameter_value(f"A parameter has the wrong type or value: {error}") from error


def _unless_shared(validator: Validator) -> Validator:
    """The account of all notebooks, which many may share, changes neither its password nor the permissions of others."""
    return lambda: caller().username != settings.notebook_username() and validator()


def _unless_default_experiment(validator: Validator) -> Validator:
    """The default experiment is shared: only an admin, whose requests are not checked here, deletes it."""

    def is_allowed() -> bool:
        try:
            is_default = int(upstream.get_request_param("experiment_id")) == DEFAULT_EXPERIMENT
        except (TypeError, ValueError):
            is_default = False
        return not is_default and validator()

    return is_allowed


def _with_good_password(method: Callable[..., Any]) -> Callable[..., Any]:
    def checked(username: str, password: str | None = None, **more: Any) -> Any:
        if password is not None and (wrong := passwords.complaint(str(username), password)):
            raise MlflowException.invalid_parameter_value(wrong)
        return method(username, password=password, **more)

    return checked


def hidden(username: str, experiments: Sequence[str]) -> list[str]:
    """The experiments whose runs this account may not read."""
    not_denied = Requirement(upstream.RESOURCE_TYPE_RUN, "*", upstream.ACTION_NOT_DENIED)
    may_read = upstream.role_based_read_predicate(username, "experiment", also_require=[not_denied])
    return [experiment for experiment in experiments if not may_read(experiment)]


_GRANTS = (
    "SELECT password_hash, is_admin, resource_type, resource_pattern, permission FROM users"
    " LEFT JOIN (user_role_assignments JOIN roles ON roles.id = role_id AND workspace = %(workspace)s"
    " JOIN role_permissions ON role_permissions.role_id = roles.id) ON user_id = users.id WHERE username = %(username)s"
)
_ACCOUNT = "SELECT id, username, is_admin, password_hash FROM users WHERE username = %(username)s"
_EXPERIMENT = "SELECT experiment_id::text AS experiment_id FROM runs WHERE run_uuid = %(run)s"


def rows(store: Any, query: str, **values: object) -> Sequence[Any]:
    """Rows of a query through the pool of one of MLflow's stores: one statement without a transaction, and without the two that
    SQLAlchemy would send to change the isolation level.

    Raises MlflowException as MLflow's own sessions do: 503 when the database does not answer, 400 for a value that it rejects.
    """
    try:
        with (
            closing(store.engine.raw_connection()) as connection,
            _autocommit(connection.dbapi_connection),
            connection.cursor(cursor_factory=NamedTupleCursor) as cursor,
        ):
            cursor.execute(query, values)
            result: Sequence[Any] = cursor.fetchall()
    except (psycopg2.OperationalError, psycopg2.InterfaceError, DBAPIError, PoolTimeout) as error:
        raise MlflowException(f"The database does not answer: {error}", upstream.TEMPORARILY_UNAVAILABLE) from error
    except psycopg2.Error as error:
        # In the words of SQLAlchemy, which names the error first.
        raise MlflowException(f"({type(error).__module__}.{type(error).__name__}) {error}", upstream.BAD_REQUEST) from error
    except ValueError as error:  # the character NUL, half of a surrogate pair
        raise MlflowException.invalid_parameter_value(str(error)) from error
    return result


@contextmanager
def _autocommit(connection: Any) -> Iterator[None]:
    connection.autocommit = True
    try:
        yield
    finally:
        if not connection.closed:
            connection.autocommit = False  # MLflow's own sessions make transactions on it


def _account(username: str) -> Any:
    return next(iter(rows(upstream.accounts, _ACCOUNT, username=username)), None)


def _grants(username: str, workspace: str = upstream.DEFAULT_WORKSPACE_NAME) -> Sequence[Any]:
    return rows(upstream.accounts, _GRANTS, username=username, workspace=workspace)


def _permissions(username: str, workspace: str, keys: Sequence[Any]) -> list[Any]:
    """Replaces MLflow's resolve_permissions: the permission at each key, None without a grant."""
    return _resolved(_grants(username, workspace), keys)


def _resolved(rows: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
    grants = [upstream.RoleGrantRow(row.resource_type, row.resource_pattern, row.permission) for row in rows if row.resource_type]
    if any(map(upstream.is_workspace_admin_grant, grants)):
        return [upstream.MANAGE] * len(keys)
    return [upstream.fold_grants_for_key(grants, key) for key in keys]


def _run_requirement(run: Any, action: str) -> Any:
    """Replaces MLflow's own: where to look for a permission, and what it must be; None for an unknown run."""
    experiments = rows(upstream.tracking_store(), _EXPERIMENT, run=run)
    return _on_runs_of(experiments[0].experiment_id, action) if experiments else None


def _redact_runs(response: Any, message: Any, runs_of: Any) -> None:
    """MLflow parses every answer with runs again to remove links to models. Needed only for accounts that are denied models."""
    models = upstream.RESOURCE_TYPE_LOGGED_MODEL
    if models in upstream.denied_sibling_tiers(caller().username, (models,)):
        upstream.redact_run_response(response, message, runs_of)


def _on_runs_of(experiment: str, action: str) -> Any:
    container = (upstream.RESOURCE_TYPE_EXPERIMENT, experiment)
    return container, [
        Requirement(*container, "read"),
        Requirement(upstream.RESOURCE_TYPE_RUN, "*", action, fallback_if_no_grant=(container,)),
    ]
