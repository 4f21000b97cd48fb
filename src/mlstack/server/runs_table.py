"""Runs by SQL, many at once: MLflow's own search selects them, Postgres writes their values directly to the client.

MLflow creates an object for each run, metric, parameter and tag, which takes two milliseconds for a run. Here the server only
passes on the output of Postgres' COPY, read in one snapshot with the read-only login. Which runs, in which order, and what an
account may read, MLflow's own functions decide, so that the results are the same.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import BufferedWriter, BytesIO, RawIOBase
from typing import Any, Literal

import psycopg2
from anyio import from_thread
from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from mlflow.exceptions import MlflowException
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from pydantic import BaseModel
from sqlalchemy.dialects.postgresql.psycopg2 import dialect as Postgres  # noqa: N812
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from mlstack.server import auth
from mlstack.server.upstream import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST, statement_of_search, tracking_store

router = APIRouter()
CHUNK = 1 << 18  # bytes
# An answer holds a connection to Postgres until the client has read it: the limits for each worker and for each account.
ANSWERS, ANSWERS_OF_ONE_ACCOUNT = 8, 4
DEADLINE = 600  # seconds for one answer: ten million points take a fifth of that
RETRY_AFTER = {"Retry-After": "2"}
# One spelling for each experiment, because permissions are read by it: Postgres also accepts "01" and digits of other scripts.
_ID = re.compile(r"0|[1-9][0-9]{0,9}")
# A holder of the reader's login may change its settings, but not those of these sessions.
SESSION = f"-csearch_path=public -cstatement_timeout={DEADLINE}s"

_NAMED = "SELECT name, experiment_id FROM experiments WHERE name = ANY(%(names)s)"
_INFO = "run_uuid AS run_id, experiment_id, status, artifact_uri, start_time, end_time"
_CHOSEN = (
    "WITH chosen AS MATERIALIZED (SELECT run_uuid, n - 1 AS n FROM unnest(ARRAY({ids})) WITH ORDINALITY AS run(run_uuid, n))"
)
_VALUE = "CASE WHEN is_nan THEN 'NaN' ELSE value::text END"
_LAST_VALUES = f"""{_CHOSEN}
SELECT n, 'metrics' AS kind, key, {_VALUE} AS value FROM chosen JOIN latest_metrics USING (run_uuid)
UNION ALL SELECT n, 'params', key, value FROM chosen JOIN params USING (run_uuid)
UNION ALL SELECT n, 'tags', key, value FROM chosen JOIN tags USING (run_uuid)"""  # noqa: S608  (constants)
_HISTORIES = f"""{_CHOSEN}
SELECT n, key, step, timestamp, {_VALUE} AS value FROM chosen JOIN metrics USING (run_uuid)
WHERE {{metrics}} ORDER BY n, key, step, timestamp, metrics.value"""  # noqa: S608  (constants)


class Search(BaseModel, extra="forbid"):
    """The runs to search, as in MLflow's search, and whether to return whole metric histories instead of all last values."""

    experiment_ids: list[str] = []
    experiment_names: list[str] = []
    filter: str = ""
    order_by: list[str] = []
    view: Literal["ACTIVE_ONLY", "DELETED_ONLY", "ALL"] = "ACTIVE_ONLY"
    history: bool = False
    metrics: list[str] = []  # none: all of them


@router.post("/api/2.0/mlstack/runs/search")
def table(search: Search, caller: auth.CallerOrNone) -> StreamingResponse:
    """Two CSV tables: the length of the first in bytes and a line feed, the runs in order, their values.

    Raises HTTPException 429 or 503 when too many answers are being read, MlflowException for a search that cannot be answered.
    """
    ids = _experiments(search)
    if caller is not None and not caller.is_admin and (hidden := auth.hidden(caller.username, ids)):
        raise MlflowException(f"{caller.username} may not read the runs of experiment {', '.join(hidden)}.", PERMISSION_DENIED)
    return _Answer(search, ids, caller.username if caller else "")


class _Slots:
    """Counts the unfinished answers of this worker. Used by its event loop only."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def slot_for(self, account: str) -> Iterator[None]:
        """Raises HTTPException 429 when this account has too many, 503 when all accounts together have."""
        if self._taken[account] >= ANSWERS_OF_ONE_ACCOUNT:
            raise HTTPException(429, "Too many tables of runs are being read by this account. Read one to its end.", RETRY_AFTER)
        if self._taken.total() >= ANSWERS:
            raise HTTPException(503, "Too many tables of runs are being read. Try again in a few seconds.", RETRY_AFTER)
        self._taken[account] += 1
        try:
            yield
        finally:
            self._taken[account] -= 1
            self._taken += Counter()  # drops accounts without any


_slots = _Slots()


class _Answer(StreamingResponse):
    """Both tables, written by Postgres while the client reads. An error in the middle breaks the connection, so that
    no client takes a part for the whole."""

    def __init__(self, search: Search, experiments: list[str], account: str) -> None:
        super().__init__((), media_type="application/octet-stream")
        self._search, self._experiments, self._account = search, experiments, account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _slots.slot_for(self._account):
            deadline = asyncio.get_running_loop().time() + DEADLINE
            with closing(await run_in_threadpool(_connect)) as connection:
                leaving = asyncio.create_task(_cancel_on_leaving(receive, connection))
                try:
                    await run_in_threadpool(self._write, connection, _Body(self, send, deadline))
                except (psycopg2.Error, OSError):
                    if not leaving.done():  # otherwise no client reads the error
                        raise
                finally:
                    leaving.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _write(self, connection: Connection, body: RawIOBase) -> None:
        connection.set_session("REPEATABLE READ", readonly=True)
        cursor = connection.cursor()
        runs = _runs(cursor, self._search, self._experiments)
        info = BytesIO()
        cursor.copy_expert(f"COPY (SELECT {_INFO} FROM ({runs}) AS runs) TO STDOUT (FORMAT csv, HEADER)", info)  # noqa: S608
        values = _values(cursor, self._search, f"SELECT run_uuid FROM ({runs}) AS runs")  # noqa: S608
        with body:  # closed before the buffer: after an error nothing more is sent
            file = BufferedWriter(body, CHUNK)
            file.write(b"%d\n" % info.tell() + info.getvalue())
            cursor.copy_expert(f"COPY ({values}) TO STDOUT (FORMAT csv, HEADER)", file)
            file.flush()


class _Body(RawIOBase):
    """The body of an answer, as a file for a thread: a write returns when the client can take more."""

    def __init__(self, answer: StreamingResponse, send: Send, deadline: float) -> None:
        self._answer, self._send, self._deadline = answer, send, deadline
        self._is_started = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Raises TimeoutError after the deadline."""
        chunk = bytes(data)
        from_thread.run(self._pass_on, chunk)
        return len(chunk)

    async def _pass_on(self, chunk: bytes) -> None:
        async with asyncio.timeout_at(self._deadline):
            if not self._is_started:  # not earlier: before this, an error has its own status
                self._is_started = True
                start: Message = {"type": "http.response.start", "status": 200, "headers": self._answer.raw_headers}
                await self._send(start)
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})


def _connect() -> Connection:
    """Raises HTTPException 503 when Postgres accepts no connection."""
    try:
        return psycopg2.connect("service=reader", options=SESSION)
    except psycopg2.OperationalError as error:
        raise HTTPException(503, f"Postgres accepts no connection: {error}", RETRY_AFTER) from error


async def _cancel_on_leaving(receive: Receive, connection: Connection) -> None:
    """Cancels the query of a client that has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await run_in_threadpool(connection.cancel)


def _experiments(search: Search) -> list[str]:
    """The ids of the experiments. Raises MlflowException for a name that no experiment has, or an id that is no number."""
    if wrong := [id_ for id_ in search.experiment_ids if not _ID.fullmatch(id_)]:
        raise MlflowException.invalid_parameter_value(f"No experiment has the id {', '.join(wrong)}.")
    if not search.experiment_names:
        return search.experiment_ids
    ids = {row.name: row.experiment_id for row in auth.rows(tracking_store(), _NAMED, names=search.experiment_names)}
    if missing := set(search.experiment_names) - ids.keys():
        raise MlflowException(f"No experiment is called {', '.join(sorted(missing))}.", RESOURCE_DOES_NOT_EXIST)
    return [*search.experiment_ids, *map(str, ids.values())]


def _runs(cursor: Cursor, search: Search, experiments: list[str]) -> str:
    """The statement of MLflow's search, with its values."""
    statement = statement_of_search(experiments, search.filter, search.order_by, search.view.lower())
    compiled = statement.compile(dialect=Postgres(), compile_kwargs={"render_postcompile": True})
    query: bytes = cursor.mogrify(str(compiled), compiled.params)
    return query.decode()


def _values(cursor: Cursor, search: Search, ids: str) -> str:
    if not search.history:
        return _LAST_VALUES.format(ids=ids)
    metrics: bytes = cursor.mogrify("key = ANY(%s)", (search.metrics,)) if search.metrics else b"true"
    return _HISTORIES.format(ids=ids, metrics=metrics.decode())
