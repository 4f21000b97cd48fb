"""Stores metric points, all waiting calls at once.

MLflow 3.17 writes each call separately through its object mapper: a dozen statements, several of them only for permissions.
Here one thread of each worker takes all waiting calls and stores them with three statements in one transaction, after which
each is answered: only stored points are acknowledged. The rows are those that MLflow writes. Only ordinary calls are handled
here. Others (an unknown run, a denied account, a metric of a model, a database that does not answer …) are left to MLflow,
which reports the reason.
"""

import json
import logging
import math
import queue
import sys
import threading
from collections.abc import Callable, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg2
from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.server import auth
from mlstack.server.auth import Login
from mlstack.server.upstream import MAX_METRICS_PER_BATCH, validate_metric

_log = logging.getLogger(__name__)
# A database that stops answering is given up after this time, in milliseconds: TCP itself would take a quarter of an hour.
CONNECTION = "connect_timeout=10 tcp_user_timeout=30000 application_name='mlstack points'"
# Calls that are stored together: MLflow's largest batches make this a statement of a few megabytes.
TOGETHER = 64
_FIELDS = {"key", "value", "timestamp", "step"}
_OF_A_CALL = _FIELDS | {"run_id", "run_uuid"}
_OF_A_BATCH = {"run_id", "metrics", "params", "tags"}
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_RUNS = "SELECT run_uuid, experiment_id::text FROM runs WHERE run_uuid = ANY(%s) AND lifecycle_stage = 'active'"
# In the order of the keys, so that two transactions cannot deadlock. Of points that differ only in whether they are NaN (stored
# as 0), the first is the latest, as in MLflow.
_STORE = """
WITH points AS (
  SELECT * FROM unnest(%s::text[], %s::text[], %s::float8[], %s::bool[], %s::bigint[], %s::bigint[])
    WITH ORDINALITY AS point(run_uuid, key, value, is_nan, timestamp, step, n)
), history AS (
  INSERT INTO metrics (run_uuid, key, value, is_nan, timestamp, step)
  SELECT run_uuid, key, value, is_nan, timestamp, step FROM points ORDER BY run_uuid, key, step, timestamp, value, is_nan, n
  ON CONFLICT DO NOTHING
)
INSERT INTO latest_metrics AS latest (run_uuid, key, value, is_nan, timestamp, step)
SELECT DISTINCT ON (run_uuid, key) run_uuid, key, value, is_nan, timestamp, step FROM points
  ORDER BY run_uuid, key, step DESC, timestamp DESC, value DESC, n
ON CONFLICT (key, run_uuid) DO UPDATE
  SET value = EXCLUDED.value, is_nan = EXCLUDED.is_nan, timestamp = EXCLUDED.timestamp, step = EXCLUDED.step
  WHERE (EXCLUDED.step, EXCLUDED.timestamp, EXCLUDED.value) > (latest.step, latest.timestamp, latest.value)
"""

Row = tuple[str, float, bool, int, int]  # key, value, is_nan, timestamp in ms, step


@dataclass(frozen=True)
class Points:
    """The points of one call, and its login: None without accounts."""

    login: Login | None
    run: str
    rows: tuple[Row, ...]


def points_of_metric(login: Login | None, body: bytes) -> Points | None:
    """The point of a log-metric call; None if the call contains anything else or is invalid."""
    return _points(login, body, _OF_A_CALL, lambda call: [{name: call[name] for name in call.keys() & _FIELDS}])


def points_of_batch(login: Login | None, body: bytes) -> Points | None:
    """The points of a log-batch call; None if the call contains anything else or is invalid."""
    return _points(login, body, _OF_A_BATCH, _metrics_only)


def _metrics_only(call: dict[str, Any]) -> Any:
    """The metrics of a batch without parameters and tags. Raises ValueError for others: MLflow handles {}, false or null."""
    if any(call.get(name, []) != [] for name in ("params", "tags")):
        raise ValueError(call)
    return call["metrics"]


def _points(
    login: Login | None, body: bytes, fields: Set[str], metrics_of: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> Points | None:
    try:
        call = json.loads(body)
        points = metrics_of(call)
        is_ordinary = call.keys() <= fields and type(points) is list and 0 < len(points) <= MAX_METRICS_PER_BATCH
        if not is_ordinary or not isinstance(call["run_id"], str) or not isinstance(call.get("run_uuid", ""), str):
            return None
        call["run_id"].encode()  # half of a surrogate pair would fail the calls stored together with this one
        return Points(login, call["run_id"], tuple(map(_row, points)))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, MlflowException):
        return None


def _row(point: dict[str, Any]) -> Row:
    """Raises one of the above for what MLflow would reject or read differently."""
    if not point.keys() <= _FIELDS:
        raise ValueError(point)
    key, value, timestamp, step = point["key"], point["value"], point["timestamp"], point.get("step", 0)
    value = _SPECIAL[value] if isinstance(value, str) else value
    validate_metric(key, value, timestamp, step)
    if type(timestamp) is not int or type(step) is not int or max(timestamp, abs(step)) >= 2**63:
        raise ValueError(point)
    if math.isnan(value):
        return key, 0.0, True, timestamp, step
    # SQL knows infinity; MLflow stores the largest number instead.
    return key, max(-sys.float_info.max, min(sys.float_info.max, float(value))), False, timestamp, step


class Writer:
    """The one thread that stores points."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Points, Future[bool]]] = queue.SimpleQueue()
        self._connection: Connection | None = None
        threading.Thread(target=self._work, daemon=True).start()

    def store(self, points: Points) -> Future[bool]:
        """Whether they are stored; if not, MLflow has to handle the call."""
        stored: Future[bool] = Future()
        self._waiting.put((points, stored))
        return stored

    def _work(self) -> None:
        while True:
            calls = [self._waiting.get()]
            while len(calls) < TOGETHER and not self._waiting.empty():
                calls.append(self._waiting.get())
            try:
                stored = self._write([points for points, _ in calls])
            except Exception as error:  # noqa: BLE001  (the waiting callers must be answered after any error)
                _log.warning("metrics are left to MLflow, which reports to the client what is wrong: %r", error)
                self._disconnect()
                stored = [False] * len(calls)
            for (_, answer), done in zip(calls, stored, strict=True):
                answer.set_result(done)

    def _write(self, calls: Sequence[Points]) -> list[bool]:
        """Which of the calls are stored."""
        self._connection = self._connection or _connect()
        with self._connection.cursor() as cursor:
            cursor.execute(_RUNS, ([points.run for points in calls],))
            experiments = dict(cursor.fetchall())
            targets = {(points.login, experiments[points.run]) for points in calls if points.run in experiments}
            permitted = {target for target in targets if auth.may_log(*target)}
            able = [(points.login, experiments.get(points.run)) in permitted for points in calls]
            rows = [(points.run, *row) for points, is_able in zip(calls, able, strict=True) if is_able for row in points.rows]
            if rows:
                cursor.execute(_STORE, [list(column) for column in zip(*rows, strict=True)])
        return able

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None


def _connect() -> Connection:
    connection = psycopg2.connect(CONNECTION)  # the rest is in PG*
    connection.autocommit = True  # each statement is a transaction, and points are stored by one
    return connection


@cache
def writer() -> Writer:
    """This process' writer, created at its first call: threads do not survive a fork."""
    return Writer()
