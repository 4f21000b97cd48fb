"""Runs by SQL, many at once: MLflow's own search chooses them, Postgres writes what they hold straight to the client.

MLflow makes an object of each run, metric, parameter and tag, and two milliseconds of each run. Here the server only passes
on what Postgres' COPY says, read in one snapshot with the login that can do nothing but read. Which runs, in which order, and
what an account may see, are decided by MLflow's own functions, so that the answers are the same.
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
# An answer holds a connection to Postgres until the client has read it: no more of them for each worker and for each account.
ANSWERS, ANSWERS_OF_ONE_ACCOUNT = 8, 4
DEADLINE = 600  # seconds for one answer: ten million points take a fifth of that
RETRY_AFTER = {"Retry-After": "2"}
# One spelling for each experiment, as permissions are looked up by it: Postgres reads "01" and digits of other scripts as well.
_ID = re.compile(r"0|[1-9][0-9]{0,9}")
# Whoever holds the reader's login may change its settings, and not those of these sessions.
SESSION = f"-csearch_path=public -cstatement_timeout={DEADLINE}s"

_NAMED = "SELECT name, experiment_id FROM experiments WHERE name = ANY(%(names)s)"
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
def search(question: Question, caller: auth.CallerOrNone) -> StreamingResponse:
    """Two CSV tables: the length of the first in bytes and a line's end, the runs in order, what they hold.

    Raises HTTPException 429 or 503 when too many answers are still being read, MlflowException for what cannot be answered.
    """
    ids = _experiments(question)
    if caller is not None and not caller.is_admin and (hidden := auth.hidden(caller.username, ids)):
        raise MlflowException(f"{caller.username} may not read the runs of experiment {', '.join(hidden)}.", PERMISSION_DENIED)
    return _Answer(question, ids, caller.username if caller else "")


class _Slots:
    """Counts the answers under way in this worker. Used by its event loop only."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @contextmanager
    def one_for(self, account: str) -> Iterator[None]:
        """Raises HTTPException 429 when this account has too many of them, 503 when all accounts together do."""
        if self._taken[account] >= ANSWERS_OF_ONE_ACCOUNT:
            raise HTTPException(429, "Too many tables of runs are being read by this account. Read one to its end.", RETRY_AFTER)
        if self._taken.total() >= ANSWERS:
            raise HTTPException(503, "Too many tables of runs are being read. Try again in a few seconds.", RETRY_AFTER)
        self._taken[account] += 1
        try:
            yield
        finally:
            self._taken[account] -= 1
            self._taken += Counter()  # forgets accounts without any


_slots = _Slots()


class _Answer(StreamingResponse):
    """Both tables, written by Postgres while the client reads. An error in the middle breaks the answer off: no client takes a
    part for the whole."""

    def __init__(self, question: Question, experiments: list[str], account: str) -> None:
        super().__init__((), media_type="application/octet-stream")
        self._question, self._experiments, self._account = question, experiments, account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _slots.one_for(self._account):
            deadline = asyncio.get_running_loop().time() + DEADLINE
            with closing(await run_in_threadpool(_connect)) as connection:
                leaving = asyncio.create_task(_cancel_on_leaving(receive, connection))
                try:
                    await run_in_threadpool(self._write, connection, _Body(self, send, deadline))
                except (psycopg2.Error, OSError):
                    if not leaving.done():  # otherwise nobody is there to read what went wrong
                        raise
                finally:
                    leaving.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _write(self, connection: Connection, body: RawIOBase) -> None:
        connection.set_session("REPEATABLE READ", readonly=True)
        cursor = connection.cursor()
        runs = _runs(cursor, self._question, self._experiments)
        info = BytesIO()
        cursor.copy_expert(f"COPY (SELECT {_INFO} FROM ({runs}) AS runs) TO STDOUT (FORMAT csv, HEADER)", info)  # noqa: S608
        values = _values(cursor, self._question, f"SELECT run_uuid FROM ({runs}) AS runs")  # noqa: S608
        with body:  # closed before the buffer is: after an error nothing more is sent
            file = BufferedWriter(body, CHUNK)
            file.write(b"%d\n" % info.tell() + info.getvalue())
            cursor.copy_expert(f"COPY ({values}) TO STDOUT (FORMAT csv, HEADER)", file)
            file.flush()


class _Body(RawIOBase):
    """The body of an answer, as a file for a thread: a write returns when the client has room for more."""

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
            if not self._is_started:  # not earlier: until here an error has a status of its own
                self._is_started = True
                start: Message = {"type": "http.response.start", "status": 200, "headers": self._answer.raw_headers}
                await self._send(start)
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})


def _connect() -> Connection:
    """Raises HTTPException 503 when Postgres gives no connection."""
    try:
        return psycopg2.connect("service=reader", options=SESSION)
    except psycopg2.OperationalError as error:
        raise HTTPException(503, f"Postgres gives no connection: {error}", RETRY_AFTER) from error


async def _cancel_on_leaving(receive: Receive, connection: Connection) -> None:
    """Ends what Postgres is doing for a client that is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await run_in_threadpool(connection.cancel)


def _experiments(question: Question) -> list[str]:
    """The ids of what is asked for. Raises MlflowException for a name that no experiment has, or an id that is no number."""
    if wrong := [one for one in question.experiment_ids if not _ID.fullmatch(one)]:
        raise MlflowException.invalid_parameter_value(f"No experiment has the id {', '.join(wrong)}.")
    if not question.experiment_names:
        return question.experiment_ids
    found = {row.name: row.experiment_id for row in auth.rows(tracking_store(), _NAMED, names=question.experiment_names)}
    if missing := set(question.experiment_names) - found.keys():
        raise MlflowException(f"No experiment is called {', '.join(sorted(missing))}.", RESOURCE_DOES_NOT_EXIST)
    return [*question.experiment_ids, *map(str, found.values())]


def _runs(cursor: Cursor, question: Question, experiments: list[str]) -> str:
    """The statement of MLflow's search, with its values."""
    chosen = statement_of_search(experiments, question.filter, question.order_by, question.view.lower())
    compiled = chosen.compile(dialect=Postgres(), compile_kwargs={"render_postcompile": True})
    statement: bytes = cursor.mogrify(str(compiled), compiled.params)
    return statement.decode()


def _values(cursor: Cursor, question: Question, ids: str) -> str:
    if not question.history:
        return _LAST_VALUES.format(ids=ids)
    metrics: bytes = cursor.mogrify("key = ANY(%s)", (question.metrics,)) if question.metrics else b"true"
    return _HISTORIES.format(ids=ids, metrics=metrics.decode())
