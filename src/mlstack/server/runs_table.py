"""Runs by SQL, many at once: MLflow's own search chooses them, Postgres writes what they hold straight to the client.

MLflow makes an object of each run, metric, parameter and tag, and two milliseconds of each run. Here the server only passes
on what Postgres' COPY says, read in one snapshot with the login that can do nothing but read. Which runs, in which order, and
what an account may see, are decided by MLflow's own functions, so that the answers are the same.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import Any, Literal

import psycopg2
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from mlflow.entities import ViewType
from mlflow.entities.lifecycle_stage import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST
from mlflow.server.handlers import _get_tracking_store
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun
from mlflow.store.tracking.sqlalchemy_store import _get_orderby_clauses, _get_sqlalchemy_filter_clauses
from mlflow.utils.search_utils import SearchUtils
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.dialects.postgresql.psycopg2 import dialect as Postgres  # noqa: N812

from mlstack.server import auth

router = APIRouter()
CHUNK = 1 << 18  # bytes
# Whoever holds the reader's login may change its settings, and not those of these sessions.
SESSION = "-csearch_path=public -cstatement_timeout=10min"

_INFO = "run_uuid AS run_id, experiment_id, status, artifact_uri, start_time, end_time"
_CHOSEN = (
    "WITH chosen AS MATERIALIZED (SELECT run_uuid, n - 1 AS n FROM unnest(ARRAY({ids})) WITH ORDINALITY AS one(run_uuid, n))"
)
_VALUE = "CASE WHEN is_nan THEN 'NaN' ELSE value::text END"
_LAST_VALUES = f"""{_CHOSEN}
SELECT n, 'metrics' AS kind, key, {_VALUE} AS value FROM chosen JOIN latest_metrics USING (run_uuid)
UNION ALL SELECT n, 'params', key, value FROM chosen JOIN params USING (run_uuid)
UNION ALL SELECT n, 'tags', key, value FROM chosen JOIN tags USING (run_uuid)"""  # noqa: S608  (constants)
_HISTORIES = f"""{_CHOSEN}
SELECT n, key, step, timestamp, {_VALUE} AS value FROM chosen JOIN metrics USING (run_uuid)
WHERE {{metrics}} ORDER BY n, key, step, timestamp, metrics.value"""  # noqa: S608  (constants)


class Question(BaseModel, extra="forbid"):
    """Which runs, as in MLflow's search, and whether the whole history of metrics instead of all last values."""

    experiment_ids: list[str] = []
    experiment_names: list[str] = []
    filter: str = ""
    order_by: list[str] = []
    view: Literal["ACTIVE_ONLY", "DELETED_ONLY", "ALL"] = "ACTIVE_ONLY"
    history: bool = False
    metrics: list[str] = []  # none: all of them


@router.post("/api/2.0/mlstack/runs/search")
def search(question: Question, request: Request) -> StreamingResponse:
    """Two CSV tables: the length of the first in bytes and a line's end, the runs in order, what they hold."""
    asker = auth.asker(request)
    ids = _experiments(question)
    if asker is not None and not asker.is_admin and (hidden := auth.hidden(asker.username, ids)):
        raise MlflowException(f"{asker.username} may not read the runs of experiment {', '.join(hidden)}.", PERMISSION_DENIED)
    connection = psycopg2.connect("service=reader", options=SESSION)
    try:
        connection.set_session("REPEATABLE READ", readonly=True)
        cursor = connection.cursor()
        runs = _runs(cursor, question, ids)
        info = BytesIO()
        cursor.copy_expert(f"COPY (SELECT {_INFO} FROM ({runs}) AS runs) TO STDOUT (FORMAT csv, HEADER)", info)  # noqa: S608
    except BaseException:
        connection.close()
        raise
    values = _values(cursor, question, f"SELECT run_uuid FROM ({runs}) AS runs")  # noqa: S608
    head = b"%d\n" % info.tell() + info.getvalue()
    return StreamingResponse(_stream(connection, cursor, values, head), media_type="application/octet-stream")


def _experiments(question: Question) -> list[str]:
    """The ids of what is asked for. Raises MlflowException for a name that no experiment has, or an id that is no number."""
    if wrong := [one for one in question.experiment_ids if not one.isdecimal()]:
        raise MlflowException.invalid_parameter_value(f"No experiment has the id {', '.join(wrong)}.")
    if not question.experiment_names:
        return question.experiment_ids
    store: Any = _get_tracking_store()
    with store.ManagedSessionMaker() as session:
        wanted = select(SqlExperiment.name, SqlExperiment.experiment_id).where(SqlExperiment.name.in_(question.experiment_names))
        found = dict(session.execute(wanted).tuples().all())
    if missing := set(question.experiment_names) - found.keys():
        raise MlflowException(f"No experiment is called {', '.join(sorted(missing))}.", RESOURCE_DOES_NOT_EXIST)
    return [*question.experiment_ids, *map(str, found.values())]


def _runs(cursor: Cursor, question: Question, experiments: list[str]) -> str:
    """The statement of MLflow's search (SqlAlchemyStore._search_runs), with its values."""
    store: Any = _get_tracking_store()
    stages = LifecycleStage.view_type_to_stages(ViewType.from_string(question.view.lower()))
    with store.ManagedSessionMaker() as session:
        ordered, order, joins = _get_orderby_clauses(question.order_by, session)
        attributes, others, datasets = _get_sqlalchemy_filter_clauses(
            SearchUtils.parse_search_filter(question.filter), session, store._get_dialect()
        )
        chosen = select(SqlRun, *ordered)
        for one in others:
            chosen = chosen.join(one)
        for one in datasets:
            chosen = chosen.join(one, SqlRun.run_uuid == one.c.destination_id)
        for one in joins:
            chosen = chosen.outerjoin(one)
        chosen = chosen.distinct().where(
            SqlRun.experiment_id.in_(map(int, experiments)), SqlRun.lifecycle_stage.in_(stages), *attributes
        )
        compiled = chosen.order_by(*order).compile(dialect=Postgres(), compile_kwargs={"render_postcompile": True})
    statement: bytes = cursor.mogrify(str(compiled), compiled.params)
    return statement.decode()


def _values(cursor: Cursor, question: Question, ids: str) -> str:
    if not question.history:
        return _LAST_VALUES.format(ids=ids)
    metrics: bytes = cursor.mogrify("key = ANY(%s)", (question.metrics,)) if question.metrics else b"true"
    return _HISTORIES.format(ids=ids, metrics=metrics.decode())


def _stream(connection: Connection, cursor: Cursor, values: str, head: bytes) -> Iterator[bytes]:
    """What COPY writes, while it writes it. An error breaks the answer off, which no client takes for its end."""
    failed: list[BaseException] = []
    readable, writable = os.pipe()

    def copy() -> None:
        try:
            with os.fdopen(writable, "wb", CHUNK) as pipe:
                cursor.copy_expert(f"COPY ({values}) TO STDOUT (FORMAT csv, HEADER)", pipe)
        except (psycopg2.Error, OSError) as error:
            failed.append(error)

    with closing(connection):
        thread = threading.Thread(target=copy)
        thread.start()
        try:
            with os.fdopen(readable, "rb", 0) as pipe:
                yield head
                while chunk := pipe.read(CHUNK):
                    yield chunk
        finally:
            thread.join()
        if failed:
            raise failed[0]
