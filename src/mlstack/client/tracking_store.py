"""MLflow's client: metrics are logged without waiting for the server, and nothing of it is seen but the time that it saves.

Registered for `http` and `https` through MLflow's entry point, in the notebook image and in the project's own environment. With
MLFLOW_ENABLE_ASYNC_LOGGING=true, which is set there, log_metric returns at once and its points leave within a second. Whatever
else this process asks of the server comes after them: who logs and then reads sees what was logged. Parameters and tags are
stored before their call returns, as without it. What finally fails is told by the flush and the end of the run.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.protos.service_pb2 import LogBatch, LogMetric, LogParam, SetTag
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.validation import _validate_metric

from mlstack.client import absent_packages
from mlstack.client.metric_queue import MetricQueue
from mlstack.errors import MlstackError

absent_packages.remember("pyspark", "dbruntime")

# Calls that neither read what was logged nor end anything.
_PLAIN_WRITES = (LogBatch, LogMetric, LogParam, SetTag)


class Logged(RunOperations):
    """What log_metric returns: something to wait for, and nothing to look at below a notebook's cell."""

    def _ipython_display_(self) -> None:
        pass


class Store(RestStore):
    """MLflow's REST client with a metric queue for metrics."""

    def __init__(self, store_uri: str, **_: Any) -> None:
        super().__init__(partial(get_default_host_creds, store_uri))
        self._address = store_uri
        self._queue = MetricQueue(self._send)

    def log_batch_async(self, run_id: str, metrics: Sequence[Metric], params: list[Param], tags: list[RunTag]) -> RunOperations:
        """Points go into the metric queue. A wrong one raises here, and not a thousand others later."""
        for metric in metrics:
            _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        if params or tags:
            self.log_batch(run_id, [], params, tags)
        return Logged(self._queue.put(run_id, metrics))

    def flush_async_logging(self) -> None:
        """Returns when everything that was logged is stored. Raises MlstackError when something could not be."""
        self._queue.flush()
        runs, reason = self._queue.dropped()
        if runs:
            what = ", ".join(f"{count} of run {run_id}" for run_id, count in runs.items())
            raise MlstackError(
                f"not every value that was logged is stored: {what} could not be sent to {self._address}: {reason}",
                "The run misses them and is not marked as finished; what was stored before stays.",
                "make status shows whether the stack is well; then log these values again",
            ) from reason

    end_async_logging = shut_down_async_logging = flush_async_logging

    def _call_endpoint(self, api: Any, *arguments: Any, **named: Any) -> Any:
        if api not in _PLAIN_WRITES and self._queue.waiting:
            self._queue.flush()  # what could not be stored is told at the end of the run, and not by whatever comes next
        return super()._call_endpoint(api, *arguments, **named)

    def _send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        self.log_batch(run_id, list(metrics), [], [])
