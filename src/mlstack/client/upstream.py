"""Every private name of MLflow that the client uses: read each again when MLflow is upgraded."""

import inspect
import logging
import os
import shutil
import sys
from collections.abc import Callable
from copy import copy
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from mlflow.environment_variables import (
    MLFLOW_ENABLE_ASYNC_LOGGING,
    MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_NOTEBOOK_TRACE_RENDERER_BASE_URL,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.protos.service_pb2 import LogBatch, LogMetric, LogParam, SetTag
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking.context.abstract_context import RunContextProvider
from mlflow.tracking.request_header.databricks_request_header_provider import DatabricksRequestHeaderProvider
from mlflow.utils import request_utils
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.env_manager import UV
from mlflow.utils.file_utils import ArtifactProgressBar, create_tmp_dir, relative_path_to_artifact_path
from mlflow.utils.import_hooks import register_post_import_hook
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import MlflowHostCreds, http_request
from mlflow.utils.uri import validate_path_is_safe
from mlflow.utils.validation import _validate_metric

from mlstack.client.patience import TellingRetry

__all__ = [
    "MLFLOW_ENABLE_ASYNC_LOGGING",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_SOURCE_NAME",
    "MLFLOW_SOURCE_TYPE",
    "RESOURCE_DOES_NOT_EXIST",
    "ArtifactProgressBar",
    "LogBatch",
    "LogMetric",
    "LogParam",
    "MlflowArtifactsRepository",
    "RestStore",
    "RunContextProvider",
    "RunOperations",
    "SetTag",
    "augmented_raise_for_status",
    "create_tmp_dir",
    "get_default_host_creds",
    "http_request",
    "is_metric_name",
    "log_metrics_asynchronously",
    "log_models_as_pickles",
    "prefer_uv_to_pyenv",
    "print_links_for_browsers",
    "relative_path_to_artifact_path",
    "skip_databricks",
    "tell_who_waits",
    "validate_path_is_safe",
    "verify_artifact_path",
]


@lru_cache(maxsize=10_000)
def is_metric_name(name: str) -> bool:
    """Whether MLflow's server accepts this name for a metric."""
    try:
        _validate_metric(name, 0.0, 0, 0)
    except MlflowException:
        return False
    return True


@cache
def log_metrics_asynchronously() -> None:
    """Makes `synchronous=False` the default of MLflow's calls that log metrics, and of no other.

    MLFLOW_ENABLE_ASYNC_LOGGING would do it for parameters and tags too, whose calls then return an operation and not the value.
    The calls that log metrics return an operation too: notebooks do not display it below a cell.
    """
    from mlflow import MlflowClient, log_metric, log_metrics

    for call in (log_metric, log_metrics, MlflowClient.log_metric, MlflowClient.log_batch):
        _set_default(call, "synchronous", False)
    RunOperations._ipython_display_ = lambda _: None  # type: ignore[attr-defined]


@cache
def skip_databricks() -> None:
    """Stops MLflow from searching the disk for Databricks' packages at each call (docs/adr/0018: what it costs).

    Spark has no session while it is not imported, and without Databricks' runtime no request has its headers.
    """
    from mlflow.tracking._model_registry import utils as model_registry
    from mlflow.tracking.request_header import registry as headers

    of_session: Any = model_registry._get_registry_uri_from_spark_session
    model_registry._get_registry_uri_from_spark_session = lambda: of_session() if "pyspark" in sys.modules else None
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        providers = headers._request_header_provider_registry._registry
        providers[:] = [provider for provider in providers if not isinstance(provider, DatabricksRequestHeaderProvider)]


def tell_who_waits() -> None:
    """Makes the retries of MLflow's requests say, after five seconds, what they wait for."""
    request_utils.Retry = TellingRetry  # type: ignore[attr-defined]


def log_models_as_pickles() -> None:
    """Makes pickles the default of mlflow.sklearn and mlflow.pytorch, as on Databricks and in autologging (docs/adr/0026)."""
    register_post_import_hook(_choose_cloudpickle, "mlflow.sklearn")
    register_post_import_hook(_choose_pickle, "mlflow.pytorch")


def _choose_cloudpickle(sklearn: Any) -> None:
    sklearn._get_default_serialization_format = lambda: sklearn.SERIALIZATION_FORMAT_CLOUDPICKLE
    sklearn._logger.addFilter(_is_no_advice)


def _choose_pickle(pytorch: Any) -> None:
    own: Any = pytorch._get_default_serialization_format
    pytorch._get_default_serialization_format = lambda exports: own(exports) if exports else pytorch.SERIALIZATION_FORMAT_PICKLE
    pytorch._logger.addFilter(_is_no_advice)


_ADVICE = (
    "Saving scikit-learn models in the pickle or cloudpickle format",
    "Saving pytorch model by Pickle or CloudPickle format",
)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Nobody chose this format, so nobody is warned of it; docs/models.md says what it means."""
    return not record.getMessage().startswith(_ADVICE)


@cache
def prefer_uv_to_pyenv() -> None:
    """Makes `virtualenv`, MLflow's default where a model or project is run, use uv where only uv is installed.

    MLflow stops without pyenv, which compiles a Python; uv takes the one that is there.
    """
    from mlflow.projects.backend import local
    from mlflow.utils import virtualenv

    if virtualenv._get_pyenv_bin_path() or not shutil.which("uv"):
        return
    create = virtualenv._create_virtualenv

    def create_by_uv(*paths: Any, **options: Any) -> str:
        command: str = create(*paths, **options | {"env_manager": UV})
        return command

    virtualenv._validate_pyenv_is_available = lambda: None
    for module in (virtualenv, local):
        setattr(module, create.__name__, create_by_uv)


@cache
def print_links_for_browsers() -> None:
    """Makes links that MLflow prints inside the stack lead to where browsers reach its server (docs/adr/0027)."""
    from mlflow.genai.utils import display_utils
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    upstream: Any = display_utils
    print_run, url_of_evaluation = TrackingServiceClient._log_url, upstream._resolve_evaluation_results_url

    def print_run_for_browsers(client: TrackingServiceClient, run_id: str) -> None:
        print_run(SimpleNamespace(store=_as_browsers_reach(client.store), tracking_uri=client.tracking_uri), run_id)  # type: ignore[arg-type, no-untyped-call]

    TrackingServiceClient._log_url = print_run_for_browsers  # type: ignore[method-assign]
    upstream._resolve_evaluation_results_url = lambda store, run: url_of_evaluation(_as_browsers_reach(store), run)


def _as_browsers_reach(store: Any) -> Any:
    """The store with the address that links begin with: MLflow takes that of the store's requests.

    The name `mlflow` resolves only inside the stack. Any other server is reached by the address that requests use.
    """
    address = MLFLOW_NOTEBOOK_TRACE_RENDERER_BASE_URL.get()
    if not address or not isinstance(store, RestStore) or urlsplit(store.get_host_creds().host).hostname != "mlflow":
        return store
    shown = copy(store)
    shown.get_run, shown.get_host_creds = store.get_run, lambda: MlflowHostCreds(address)  # type: ignore[method-assign]
    return shown


def _set_default(function: Callable[..., Any], name: str, value: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    function.__defaults__ = tuple((defaults | {name: value}).values())
