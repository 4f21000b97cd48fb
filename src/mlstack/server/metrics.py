"""Metric points into the database, all that wait at once.

MLflow 3.17 writes each call by itself through its object mapper: a dozen statements, several of them only to learn whether
the account may. Here one thread of each worker takes all calls that came meanwhile and stores them with three statements in
one transaction, after which each is answered: nothing is acknowledged that is not stored. The rows are those that MLflow
writes. Only the ordinary is done here. What is not (an unknown run, a refusal, a metric of a model, a database that does not
answer …) is left to MLflow, which then says why.
"""

import json
import logging
import math
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg2
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, _validate_metric
from psycopg2.extensions import connection as Connection  # noqa: N812

from mlstack.server import auth

_log = logging.getLogger(__name__)
# A database that is gone without a word is given up after this time, in milliseconds: TCP itself would take a quarter of an hour.
CONNECTION = "connect_timeout=10 tcp_user_timeout=30000 application_name='mlstack points'"
# Calls that are stored together: MLflow's largest batches make this a statement of a few megabytes.
TOGETHER = 64
_FIELDS = {"key", "value", "timestamp", "step"}
_OF_A_CALL = _FIELDS | {"run_id", "run_uuid"}
_OF_A_BATCH = {"run_id", "metrics", "params", "tags"}
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

_RUNS = "SELECT run_uuid, experiment_id::text FROM runs WHERE run_uuid = ANY(%s) AND lifecycle_stage = 'active'"
# In the order of the keys, so that two transactions wait for each other and never in a circle.
_STORE = """
WITH points AS (
  SELECT DISTINCT * FROM unnest(%s::text[], %s::text[], %s::float8[], %s::bool[], %s::bigint[], %s::bigint[])
    AS point(run_uuid, key, value, is_nan, timestamp, step)
), history AS (
  INSERT INTO metrics (run_uuid, key, value, is_nan, timestamp, step)
  SELECT * FROM points ORDER BY run_uuid, key, step, timestamp, value, is_nan
  ON CONFLICT DO NOTHING
)
INSERT INTO latest_metrics AS latest (run_uuid, key, value, is_nan, timestamp, step)
SELECT DISTINCT ON (run_uuid, key) * FROM points ORDER BY run_uuid, key, step DESC, timestamp DESC, value DESC
ON CONFLICT (key, run_uuid) DO UPDATE
  SET value = EXCLUDED.value, is_nan = EXCLUDED.is_nan, timestamp = EXCLUDED.timestamp, step = EXCLUDED.step
  WHERE (EXCLUDED.step, EXCLUDED.timestamp, EXCLUDED.value) > (latest.step, latest.timestamp, latest.value)
"""

Row = tuple[str, float, bool, int, int]  # key, value, is_nan, timestamp in ms, step


@dataclass(frozen=True)
class Points:
    """What one call logs, and for whom: None where nobody is asked."""

    user: str | None
    run: str
    rows: tuple[Row, ...]


def of_call(user: str | None, body: bytes) -> Points | None:
    """The points of a log-metric or log-batch call; None when there is anything else in it, or anything wrong."""
    try:
        found = json.loads(body)
        if "metrics" in found:
            if not found.keys() <= _OF_A_BATCH or found.get("params") or found.get("tags"):
                return None
            points = found["metrics"]
        else:
            points = [{name: found[name] for name in found.keys() & _FIELDS}]
            if not found.keys() <= _OF_A_CALL:
                return None
        if not 0 < len(points) <= MAX_METRICS_PER_BATCH or not isinstance(found["run_id"], str):
            return None
        return Points(user, found["run_id"], tuple(map(_row, points)))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MlflowException):
        return None


def _row(point: dict[str, Any]) -> Row:
    """Raises one of the above for what MLflow would refuse or read in another way."""
    if not point.keys() <= _FIELDS:
        raise ValueError(point)
    key, value, timestamp, step = point["key"], point["value"], point["timestamp"], point.get("step", 0)
    value = _SPECIAL[value] if isinstance(value, str) else value
    _validate_metric(key, value, timestamp, step)
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
        """Whether they are stored; otherwise MLflow is to be asked."""
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
            except Exception as error:  # noqa: BLE001  (whoever waits is to be answered, whatever it is)
                _log.warning("metrics are left to MLflow, which tells the client what is wrong: %r", error)
                self._disconnect()
                stored = [False] * len(calls)
            for (_, answer), done in zip(calls, stored, strict=True):
                answer.set_result(done)

    def _write(self, calls: Sequence[Points]) -> list[bool]:
        """Which of them are stored."""
        self._connection = self._connection or _connect()
        with self._connection.cursor() as cursor:
            cursor.execute(_RUNS, ([points.run for points in calls],))
            experiments = dict(cursor.fetchall())
            asked = {(points.user, experiments[points.run]) for points in calls if points.run in experiments}
            permitted = {who for who in asked if auth.may_log(*who)}
            able = [(points.user, experiments.get(points.run)) in permitted for points in calls]
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
    """That of this process, from its first call on: threads do not survive a fork."""
    return Writer()
