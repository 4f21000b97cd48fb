"""MLflow's client, except that metrics are logged without waiting for the server.

Registered for `http` and `https` through MLflow's entry point, in the notebook image and in the project's own environment. There
log_metric returns at once and its points are sent within a second. All other calls of this process wait for them first: a
program reads what it logged. Parameters and tags are stored before their call returns. A metric that may be invalid is logged
by MLflow's own synchronous call, which raises its own error. With MLFLOW_ENABLE_ASYNC_LOGGING=false every metric is.
"""

import logging
from collections.abc import Sequence
from functools import cache, partial
from http import HTTPStatus
from numbers import Integral
from typing import Any

from mlflow.entities import LifecycleStage, Metric, Param, RunInfo, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from mlstack.client.errors import ClientError
from mlstack.client.metric_queue import Loss, MetricQueue, RejectedError, Sent
from mlstack.client.upstream import (
    MLFLOW_ENABLE_ASYNC_LOGGING,
    LogBatch,
    LogMetric,
    LogParam,
    RestStore,
    RunOperations,
    SetTag,
    get_default_host_creds,
    is_metric_name,
    log_metrics_asynchronously,
    prefer_uv_to_pyenv,
    print_links_for_browsers,
    skip_databricks,
)

log = logging.getLogger(__name__)
# Calls that neither read what was logged nor end a run.
_PLAIN_WRITES = (LogBatch, LogMetric, LogParam, SetTag)
# Errors that do not concern the metrics themselves.
_UNRELATED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class Store(RestStore):
    """MLflow's REST client with a queue for metrics."""

    def __init__(self, store_uri: str, **_: Any) -> None:
        super().__init__(partial(get_default_host_creds, store_uri))
        skip_databricks()
        prefer_uv_to_pyenv()
        print_links_for_browsers()
        self._address = store_uri
        self._queue = MetricQueue(self._send)
        if not MLFLOW_ENABLE_ASYNC_LOGGING.is_set():
            log_metrics_asynchronously()

    def log_metric_async(self, run_id: str, metric: Metric) -> RunOperations:
        """As MLflow's own. Raises MlflowException, TypeError or ValueError for a wrong metric, as log_metric does."""
        sent = self._put(run_id, [metric])
        if sent is None:
            self.log_metric(run_id, metric)
        return RunOperations(sent)

    def log_batch_async(self, run_id: str, metrics: Sequence[Metric], params: list[Param], tags: list[RunTag]) -> RunOperations:
        """As MLflow's own. Raises as log_batch does for a wrong argument, and then stores nothing of the call."""
        sent = None if params or tags else self._put(run_id, metrics)
        if sent is None:
            self.log_batch(run_id, metrics, params, tags)
        return RunOperations(sent)

    def _put(self, run_id: str, metrics: Sequence[Metric]) -> list[Sent] | None:
        """None if MLflow's own call has to log them."""
        is_off = MLFLOW_ENABLE_ASYNC_LOGGING.is_set() and not MLFLOW_ENABLE_ASYNC_LOGGING.get()
        return self._queue.put(run_id, metrics) if not is_off and all(map(_is_plain, metrics)) else None

    def flush_async_logging(self) -> None:
        """Returns when everything that was logged is stored. Raises ClientError if something could not be."""
        self._queue.flush()
        self._raise(self._queue.losses())

    def end_async_logging(self) -> None:
        """Returns when everything that was logged is stored or given up: MLflow calls it at the end of each run."""
        self._queue.flush()

    shut_down_async_logging = end_async_logging

    def update_run_info(self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None) -> RunInfo:
        """As MLflow's own. Raises ClientError, and does not end the run, when metrics of this very run could not be stored."""
        if run_status is not None and RunStatus.is_terminated(run_status):
            self._queue.flush()
            self._raise(self._queue.losses(run_id))
        info: RunInfo = super().update_run_info(run_id, run_status, end_time, run_name)
        return info

    def _raise(self, losses: dict[str, Loss]) -> None:
        if not losses:
            return
        lost = ", ".join(f"{loss.count} of run {run_id}" for run_id, loss in losses.items())
        reason = [*losses.values()][-1].reason
        raise ClientError(
            f"not every metric that was logged is stored: {lost} could not be sent to {self._address}: {reason}",
            "The run misses them and is not marked as finished; what was stored before stays.",
            "make status shows whether the stack is healthy; then log these metrics again",
        ) from reason

    def _call_endpoint(self, api: Any, *arguments: Any, **named: Any) -> Any:
        if api not in _PLAIN_WRITES and self._queue.waiting:
            self._queue.flush()  # losses are reported at the end of their run, not by the next call
        try:
            return super()._call_endpoint(api, *arguments, **named)
        except MlflowException as error:
            if error.get_http_status_code() == HTTPStatus.UNAUTHORIZED:
                _tell_account(self._address)
            raise

    def _send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        try:
            self.log_batch(run_id, list(metrics), [], [])
        except MlflowException as error:
            status = error.get_http_status_code()
            is_of_request = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _UNRELATED
            if is_of_request and self._is_active(run_id):
                raise RejectedError(error) from error
            raise

    def _is_active(self, run_id: str) -> bool:
        """Whether a run accepts metrics: if not, its points are not sent again."""
        try:
            return bool(self.get_run(run_id).info.lifecycle_stage == LifecycleStage.ACTIVE)
        except MlflowException:
            return False


@cache
def _tell_account(address: str) -> None:
    """Says once what a password that make rotate has replaced looks like: the metric queue alone would only repeat it."""
    log.warning(
        "MLflow at %s does not take the account of this process: its password was probably replaced (make rotate)."
        " What is logged from here is not stored. Fix: restart the kernel; on the host, connect() reads the new one from .env.",
        address,
    )


def _is_plain(metric: Metric) -> bool:
    """Whether this metric is certainly valid for all of MLflow."""
    return (
        type(metric.key) is str
        and isinstance(metric.value, float)
        and _is_long(metric.timestamp)
        and metric.timestamp >= 0
        and _is_long(metric.step)
        and is_metric_name(metric.key)
    )


def _is_long(number: Any) -> bool:
    """Whether it is a 64-bit integer, of Python or NumPy."""
    return isinstance(number, Integral) and not isinstance(number, bool) and -(2**63) <= int(number) < 2**63
