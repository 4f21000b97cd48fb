"""The routes that read the decision log and add labels to it. They need an account; a key only scores."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlstack.scoring.access import account_of
from mlstack.scoring.bodies import json_body
from mlstack.scoring.store import Store, StoreError

T = TypeVar("T")
PAGE = 5_000  # rows
MOST_LABELS = 10_000
# Filters of a request, and how each is written in SQL.
_FILTERS: Mapping[str, str] = {
    "model": "d.model = %(model)s",
    "version": "d.version = %(version)s",
    "role": "d.role = %(role)s",
    "entity": "d.entity = %(entity)s",
    "request": "d.request = %(request)s::uuid",
    "since": "d.time >= %(since)s::timestamptz",
    "until": "d.time < %(until)s::timestamptz",
    "after_time": "(d.time, d.request, d.row, d.role) > (%(after_time)s::timestamptz, %(after_request)s::uuid,"
    " %(after_row)s::integer, %(after_role)s)",
}
_PARAMETERS = {*_FILTERS, "after_request", "after_row", "after_role"}
_SELECT = (
    "SELECT to_jsonb(d) || jsonb_build_object('label', l.value, 'label_known_at', l.known_at)"
    " FROM serving.decisions d LEFT JOIN LATERAL (SELECT value, known_at FROM serving.labels"
    " WHERE labels.request = d.request AND labels.row = d.row ORDER BY known_at DESC LIMIT 1) l ON true"
    " WHERE {} ORDER BY d.time, d.request, d.row, d.role LIMIT %(limit)s"
)
_LABEL = (
    "INSERT INTO serving.labels (request, row, known_at, value, put_by)"
    " VALUES (%(request)s::uuid, %(row)s::integer, %(known_at)s::timestamptz, %(value)s::jsonb, %(put_by)s)"
    " ON CONFLICT (request, row, known_at) DO NOTHING"
)


class History:
    """Decisions as a table, a page at a time, and labels that arrive later."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def decisions(self, request: Request) -> Response:
        """A page of rows, ordered by time; the next one begins after its last row."""
        account_of(request)
        given = dict(request.query_params)
        if unknown := given.keys() - _PARAMETERS:
            raise HTTPException(400, f"The parameters are {', '.join(sorted(_PARAMETERS))}, and not {min(unknown)[:40]}.")
        conditions = [condition for name, condition in _FILTERS.items() if name in given] or ["true"]
        select = _SELECT.format(" AND ".join(conditions))
        values = {**dict.fromkeys(_PARAMETERS), **given, "limit": PAGE}
        rows = await answered(self._store, partial(_rows, select, values))
        return JSONResponse({"decisions": rows, "is_last": len(rows) < PAGE})

    async def labels(self, request: Request) -> Response:
        """Adds labels. One that is there already, with the same known-at time, is left as it is."""
        account = account_of(request)
        body = await json_body(request)
        labels = body.get("labels")
        if not isinstance(labels, list) or len(labels) > MOST_LABELS:
            raise HTTPException(400, f"The body needs a list of at most {MOST_LABELS} labels.")
        try:
            values = [
                {
                    "request": str(label["request"]),
                    "row": int(label.get("row", 0)),
                    "known_at": str(label["known_at"]),
                    "value": json.dumps(label["value"], allow_nan=False),
                    "put_by": account,
                }
                for label in labels
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise HTTPException(400, "A label needs request, known_at and value; row is 0 unless it is given.") from None
        added = await answered(self._store, partial(_put, values))
        return JSONResponse({"added": added})


async def answered(store: Store, work: Callable[[Cursor], T]) -> T:
    """The result of work in Postgres. Raises HTTPException: 503 without Postgres, 409 if it has a value, 400 if it rejects it."""
    try:
        return await store.run(work)
    except StoreError:
        raise HTTPException(503, "Postgres does not answer. Try again.") from None
    except psycopg2.errors.UniqueViolation:
        raise HTTPException(409, "Another request stored the same at the same time. Try again.") from None
    except (psycopg2.DataError, psycopg2.IntegrityError) as error:
        raise HTTPException(400, f"A value cannot be stored: {type(error).__name__}.") from None


def _rows(select: str, values: Mapping[str, Any], cursor: Cursor) -> list[dict[str, Any]]:
    cursor.execute(select, values)
    return [row for (row,) in cursor.fetchall()]


def _put(values: list[dict[str, Any]], cursor: Cursor) -> int:
    added = 0
    for value in values:
        cursor.execute(_LABEL, value)
        added += cursor.rowcount
    return added
