"""All private names of MLflow and uvicorn that the server uses: no other file imports one.

Each function of theirs that the server replaces is replaced here. At an upgrade a test reports those that have changed
(docs/upgrading-mlflow.md).
"""

import copy
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

# MLflow sets up its Flask application when it is imported, with its security layer only if uvicorn was imported before.
import uvicorn._subprocess

# isort: split
import mlflow.server
from mlflow.cli import server as mlflow_server
from mlflow.entities import ViewType
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from mlflow.server import app as flask_app
from mlflow.server import auth, handlers
from mlflow.server.auth.permissions import MANAGE, RESOURCE_TYPE_EXPERIMENT, RESOURCE_TYPE_LOGGED_MODEL, RESOURCE_TYPE_RUN
from mlflow.server.auth.requirements import (
    ACTION_NOT_DENIED,
    Requirement,
    fold_grants_for_key,
    is_workspace_admin_grant,
    requirement_satisfied,
    requirements_to_grant_load_keys,
)
from mlflow.server.auth.sqlalchemy_store import RoleGrantRow
from mlflow.server.fastapi_app import app as app_without_accounts
from mlflow.server.fastapi_security import get_allowed_hosts, get_allowed_origins
from mlflow.server.security_utils import INVALID_HOST_MSG, is_allowed_host_header, is_health_endpoint
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from mlflow.store.model_registry import sqlalchemy_store as registry
from mlflow.store.tracking import sqlalchemy_store
from mlflow.store.tracking.dbmodels.models import SqlAssessmentDailyRollup, SqlSpanCostDailyRollup, SqlTraceMetricDailyRollup
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracing import trace_rollup_service
from mlflow.tracing.constant import TRACE_RENDERER_ASSET_PATH
from mlflow.utils.uri import append_to_uri_path, validate_path_is_safe
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, _validate_metric
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME
from mlflow.webhooks import delivery, ssrf
from sqlalchemy import Select, delete
from sqlalchemy.orm import Session

from mlstack.errors import MlstackError

__all__ = [
    "ACTION_NOT_DENIED",
    "BAD_REQUEST",
    "DEFAULT_WORKSPACE_NAME",
    "INTERNAL_ERROR",
    "INVALID_HOST_MSG",
    "INVALID_PARAMETER_VALUE",
    "MANAGE",
    "MAX_METRICS_PER_BATCH",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_TYPE_EXPERIMENT",
    "RESOURCE_TYPE_LOGGED_MODEL",
    "RESOURCE_TYPE_RUN",
    "TEMPORARILY_UNAVAILABLE",
    "TRACE_RENDERER_ASSET_PATH",
    "ArtifactRepository",
    "Requirement",
    "RoleGrantRow",
    "S3ArtifactRepository",
    "app_without_accounts",
    "append_to_uri_path",
    "flask_app",
    "fold_grants_for_key",
    "get_allowed_hosts",
    "get_allowed_origins",
    "is_allowed_host_header",
    "is_health_endpoint",
    "is_workspace_admin_grant",
    "mlflow_server",
    "requirement_satisfied",
    "requirements_to_grant_load_keys",
    "validate_path_is_safe",
]

Validator = Callable[[], bool]  # MLflow's name for a check of a request's permission

_auth: Any = auth  # more of it is used than it exports
_handlers: Any = handlers
_multiprocessing: Any = uvicorn._subprocess
_registry: Any = registry
_delivery: Any = delivery
_webhooks: Any = ssrf
_tracking: Any = sqlalchemy_store
_rollups: Any = trace_rollup_service
_server: Any = mlflow.server

accounts = _auth.store
auth_config = _auth.auth_config
authorizes_artifact = _auth._authorize_fastapi_artifact_proxy
denied_sibling_tiers = _auth._denied_sibling_tiers
absent_permission = _auth._absent_permission
get_request_param = _auth._get_request_param
is_disabled_legacy_admin_login = _auth._is_disabled_legacy_admin_login
is_unprotected_route = _auth.is_unprotected_route
make_basic_auth_response = _auth.make_basic_auth_response
may_delete_experiment = _auth.validate_can_delete_experiment
may_manage_resource = _auth.validate_can_manage_resource
may_update_password = _auth.validate_can_update_user_password
role_based_read_predicate = _auth._role_based_read_predicate
tracking_store = _handlers._get_tracking_store
app_with_accounts = _auth.create_app
validate_metric: Callable[..., None] = _validate_metric
# Replaced by the functions below.
find_validator = _auth._find_validator
redact_run_response = _auth._redact_run_response


def replace_login(of_fastapi: Callable[[Any], Any], of_flask: Callable[[], Any], is_admin: Callable[[], bool]) -> None:
    """Replaces how MLflow identifies the caller and an admin.

    MLflow has a public setting for `of_flask`, authorization_function: docs/adr/0023.
    """
    _auth._authenticate_fastapi_request = of_fastapi
    _auth.authenticate_request_basic_auth = of_flask
    _auth.sender_is_admin = is_admin


def replace_permissions(
    find: Callable[[Any], Validator | None],
    resolve: Callable[[str, str, Sequence[Any]], list[Any]],
    of_run: Callable[[Any, str], Any],
    redact: Callable[[Any, Any, Any], None],
) -> None:
    """Replaces how MLflow reads a caller's permissions, and what it removes from runs."""
    _auth._find_validator = find
    _auth.resolve_permissions = resolve
    _auth._run_requirement = of_run
    _auth._redact_run_response = redact


def replace_passwords(checked: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Adds a check to the creation and the change of passwords."""
    accounts.create_user = checked(accounts.create_user)
    accounts.update_user = checked(accounts.update_user)


def replace_locations(
    of_experiment: Callable[[str], None], stored: Callable[[str], None], of_trace: Callable[[Any], str]
) -> None:
    """Replaces where artifacts may be."""
    _handlers._validate_experiment_artifact_location = of_experiment
    _handlers.validate_artifact_uri_host = stored
    _handlers.get_artifact_uri_for_trace = of_trace


def replace_archives(of_trace: Callable[[Any], str], of_id: Callable[[str], str]) -> None:
    """Replaces where a trace's archived spans are read, and deleted with the trace."""
    _handlers.get_archive_uri_for_trace = of_trace
    _tracking.get_archive_uri_for_trace = of_trace
    stores: Any = SqlAlchemyStore
    remove = stores._delete_archived_trace_payloads

    def deleted(store: Any, traces: Sequence[Any]) -> Any:
        return remove(store, [replace(trace, archived_artifact_uri=of_id(trace.trace_id)) for trace in traces])

    stores._delete_archived_trace_payloads = deleted


def replace_webhooks(is_named: Callable[[str], bool], is_peer_named: Callable[[tuple[Any, ...]], bool]) -> None:
    """Lets webhooks be sent to some URLs and addresses that MLflow would reject, because they are private or without TLS."""
    validate, assert_public = _delivery._validate_webhook_url, _webhooks._assert_public_peer

    def validated(url: str) -> None:
        if not is_named(url):
            validate(url)

    def asserted(peer: Any) -> None:
        if not is_peer_named(peer.getpeername()):
            assert_public(peer)

    _delivery._validate_webhook_url = validated
    _registry._validate_webhook_url = validated
    _webhooks._assert_public_peer = asserted


def replace_rollups_check(check: Callable[[str], None]) -> None:
    """Replaces that `mlflow server` does not start without rollups while there are some."""
    _rollups.validate_sql_trace_rollup_startup = check


def delete_rollups(uri: str) -> None:
    """Deletes the rollups of traces, which are computed from these again. Days that are noted as changed stay noted."""
    engine = create_sqlalchemy_engine_with_retry(uri)
    with engine.begin() as connection:
        for table in (SqlTraceMetricDailyRollup, SqlSpanCostDailyRollup, SqlAssessmentDailyRollup):
            connection.execute(delete(table))
    engine.dispose()


def replace_start(serve: Callable[..., NoReturn]) -> None:
    """Replaces how `mlflow server` starts uvicorn."""
    _server._exec_cmd = serve


def run_uvicorn(options: Sequence[str]) -> None:
    """`uvicorn …` in this process, with workers that are forked from it."""
    _multiprocessing.spawn = multiprocessing.get_context("fork")
    uvicorn.main(list(options))


class _ChosenError(Exception):
    def __init__(self, statement: Select[Any]) -> None:
        super().__init__()
        self.statement = statement


class _Recorder(Session):  # type: ignore[misc]  # in the image only
    def execute(self, statement: Any, *_: Any, **__: Any) -> NoReturn:
        raise _ChosenError(statement)


@contextmanager
def _recording() -> Iterator[Session]:
    with _Recorder() as session:
        yield session


def statement_of_search(experiments: Sequence[str], filter_string: str, order_by: Sequence[str], view: str) -> Select[Any]:
    """The statement with which MLflow's search would select runs, all of them in order. It is not executed.

    Raises MlflowException for a filter or an order that MLflow does not understand.
    """
    store: SqlAlchemyStore = copy.copy(tracking_store())
    store.ManagedSessionMaker = _recording
    try:
        store._search_runs(experiments, filter_string, ViewType.from_string(view), None, order_by, None)
    except _ChosenError as chosen:
        return chosen.statement.offset(None)
    raise MlstackError(
        "MLflow's search has executed no statement.",
        "Which runs a table holds is decided by this statement.",
        "read SqlAlchemyStore._search_runs of this version again: docs/upgrading-mlflow.md",
    )
