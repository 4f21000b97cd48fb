"""MLflow's client, for what is logged asynchronously: nothing is dropped in silence, and what waits is bounded.

MLflow 3.17 sends what waits in merged batches. When such a batch finally fails, only its first call is told so; `wait()` of
the others, `flush_async_logging()` and the end of the run succeed without their points. Here all of them raise. Registered
for `http` through MLflow's entry point, in the notebook image and in the project's own environment.
"""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.store.tracking.rest_store import RestStore
from mlflow.utils.async_logging.async_logging_queue import AsyncLoggingQueue
from mlflow.utils.async_logging.run_batch import RunBatch
from mlflow.utils.async_logging.run_operations import RunOperations
from mlflow.utils.credentials import get_default_host_creds

from mlstack.errors import MlstackError

# Values that may wait to be stored: a killed process loses no more than these. Logging waits for room beyond.
LIMIT = 100_000


class Batch(RunBatch):
    """What one call logs. Its failure is that of every call that was merged into it."""

    def complete(self) -> None:
        for child in self.child_batches:
            child.exception = self.exception
        super().complete()


class Queue(AsyncLoggingQueue):
    """MLflow's queue with these batches."""

    def log_batch_async(self, run_id: str, params: list[Param], tags: list[RunTag], metrics: list[Metric]) -> RunOperations:
        if not self.is_active():
            self.activate()
        batch = Batch(run_id, params=params, tags=tags, metrics=metrics, completion_event=threading.Event())
        self._queue.put(batch)
        pool: ThreadPoolExecutor = self._batch_status_check_threadpool  # type: ignore[assignment] # made by activate
        return RunOperations([pool.submit(self._wait_for_batch, batch)])


class Store(RestStore):
    """MLflow's REST client with such a queue."""

    def __init__(self, store_uri: str, **_: Any) -> None:
        super().__init__(partial(get_default_host_creds, store_uri))
        self._address = store_uri
        self._async_logging_queue = Queue(self._write)
        self._change = threading.Condition()
        self._waiting = 0
        self._dropped: Counter[str] = Counter()  # by run
        self._reason: Exception | None = None

    def log_batch_async(self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> RunOperations:
        """Waits while LIMIT values are on their way, so that an outage neither fills the memory nor risks more."""
        count = len(metrics) + len(params) + len(tags)
        with self._change:
            self._change.wait_for(lambda: self._waiting < LIMIT)
            self._waiting += count
        try:
            return super().log_batch_async(run_id, metrics, params, tags)
        except BaseException:
            self._are_done(count)
            raise

    def flush_async_logging(self) -> None:
        """Returns when everything that was logged is stored. Raises MlstackError when something could not be."""
        super().flush_async_logging()
        self._tell_what_was_dropped()

    def shut_down_async_logging(self) -> None:
        """The same, at the end of a run, which is then not marked as finished."""
        super().shut_down_async_logging()
        self._tell_what_was_dropped()

    def _write(self, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        count = len(metrics) + len(params) + len(tags)
        try:
            self.log_batch(run_id, metrics, params, tags)
        except Exception as error:
            with self._change:
                self._dropped[run_id] += count
                self._reason = error
            raise
        finally:
            self._are_done(count)

    def _are_done(self, count: int) -> None:
        with self._change:
            self._waiting -= count
            self._change.notify_all()

    def _tell_what_was_dropped(self) -> None:
        with self._change:
            dropped, reason = self._dropped, self._reason
            self._dropped, self._reason = Counter(), None
        if dropped:
            runs = ", ".join(f"{count} of run {run_id}" for run_id, count in dropped.items())
            raise MlstackError(
                f"not every value that was logged is stored: {runs} could not be sent to {self._address}: {reason}",
                "The run misses them and is not marked as finished; what was stored before stays.",
                "make status shows whether the stack is well; then log these values again",
            ) from reason
