"""The routes that move an alias: promote and rollback, and how much traffic a challenger gets. They need an account of MLflow.

MLflow decides whether the account may move the alias: the service passes its login on. Its own account cannot.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid5

import requests
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlstack.scoring.access import account_of
from mlstack.scoring.bodies import json_body
from mlstack.scoring.catalogue import CHALLENGER, CHAMPION, Champion
from mlstack.scoring.history import answered
from mlstack.scoring.policies import reason_of
from mlstack.scoring.records import Records
from mlstack.scoring.store import Store

MODES = ("off", "shadow", "canary")
SECONDS = 10
_LONGEST = 200  # characters of an answer in plain text
_MOVED = "the alias was moved in MLflow"


@dataclass(frozen=True)
class Recorded:
    """A deployment in the log; the defaults stand before the first one."""

    identifier: str = str(UUID(int=0))
    version: str | None = None
    previous: str | None = None


class Deployments:
    """Which version an alias named when, moved by whom and why."""

    def __init__(self, store: Store, records: Records, mlflow: str) -> None:
        self._store, self._records, self._mlflow = store, records, mlflow.rstrip("/")

    async def listed(self, request: Request) -> Response:
        """A model's deployments, the newest first."""
        account_of(request)
        rows = await answered(self._store, partial(_listed, request.path_params["name"]))
        return JSONResponse({"deployments": rows})

    async def promote(self, request: Request) -> Response:
        """The challenger becomes the champion, and there is no challenger any more.

        An account that may set aliases but not delete them leaves the alias on the champion, where it has no effect: the answer
        says so in `remaining`. Promoting again only takes the alias away.
        """
        account_of(request)
        model, reason = request.path_params["name"], reason_of(await json_body(request))
        aliases = await self._aliases(request, model)
        if CHALLENGER not in aliases:
            raise HTTPException(409, "The model has no challenger.")
        moved = await self._moved(request, model, aliases[CHALLENGER], aliases.get(CHAMPION), reason)
        try:
            await self._call(request, "DELETE", "registered-models/alias", {"name": model, "alias": CHALLENGER})
        except HTTPException as problem:
            moved["remaining"] = f"The alias {CHALLENGER} still names the new champion. {problem.detail}"
        return JSONResponse(moved)

    async def rollback(self, request: Request) -> Response:
        """The version that was the champion before the newest deployment is it again."""
        account_of(request)
        model, reason = request.path_params["name"], reason_of(await json_body(request))
        current = (await self._aliases(request, model)).get(CHAMPION)
        previous = await answered(self._store, partial(_previous, model, current))
        if previous is None:
            raise HTTPException(409, "No deployment of the version that is the champion says what was the champion before it.")
        return JSONResponse(await self._moved(request, model, previous, current, reason))

    async def traffic(self, request: Request) -> Response:
        """Sets what the challenger gets."""
        account, model = account_of(request), request.path_params["name"]
        body = await json_body(request)
        mode, weight, reason = body.get("mode"), body.get("weight", 0), reason_of(body)
        if mode not in MODES or isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise HTTPException(400, f"The mode is {', '.join(MODES)}, and the weight of a canary is from 0 to 1.")
        if not math.isfinite(weight) or (mode == "canary" and not weight):
            raise HTTPException(400, "A canary needs a weight above 0.")
        await answered(self._store, partial(_set_traffic, (model, mode, float(weight), account, reason)))
        await self._records.refresh()
        return JSONResponse({"mode": mode, "weight": weight})

    async def _moved(self, request: Request, model: str, version: str, current: str | None, reason: str) -> dict[str, str | None]:
        """Records the deployment and sets the alias. Raises HTTPException, which says what holds if only the alias was set."""
        is_set = Event()

        def record(cursor: Cursor) -> tuple[str, str | None]:
            recorded = _recorded(model, cursor)
            if current == version == recorded.version:  # by an earlier call, which did not end
                return recorded.identifier, recorded.previous
            previous = recorded.version if current == version else current
            identifier = _record(recorded, (model, version, previous, account_of(request), reason), cursor)
            self._set_alias(request, model, version)
            is_set.set()
            return identifier, previous

        try:
            identifier, previous = await answered(self._store, record)
        except HTTPException as problem:
            if not is_set.is_set():
                raise
            raise HTTPException(
                problem.status_code,
                f"Version {version} is the champion, but Postgres did not confirm who made it that and why: if it has no record,"
                " the deployment is recorded as moved in MLflow.",
            ) from None
        return {"deployment": identifier, "version": version, "previous": previous}

    def _set_alias(self, request: Request, model: str, version: str) -> None:
        self._call_now(request, "POST", "registered-models/alias", {"name": model, "alias": CHAMPION, "version": version})

    async def _aliases(self, request: Request, model: str) -> dict[str, str]:
        answer = await self._call(request, "GET", f"registered-models/get?{urlencode({'name': model})}")
        return {alias["alias"]: alias["version"] for alias in answer["registered_model"].get("aliases", [])}

    async def _call(self, request: Request, method: str, path: str, body: object = None) -> dict[str, Any]:
        return await asyncio.to_thread(self._call_now, request, method, path, body)

    def _call_now(self, request: Request, method: str, path: str, body: object = None) -> dict[str, Any]:
        """MLflow's answer to the caller's own account. Raises HTTPException with MLflow's status."""
        headers = {"Authorization": request.headers["authorization"]}
        try:
            answer = requests.request(
                method, f"{self._mlflow}/api/2.0/mlflow/{path}", json=body, headers=headers, timeout=SECONDS
            )
            # MLflow denies in plain text.
            content = answer.json() if "json" in answer.headers.get("content-type", "") else {"message": answer.text[:_LONGEST]}
        except requests.RequestException:
            raise HTTPException(503, "MLflow does not answer. Try again.") from None
        if not answer.ok:
            raise HTTPException(answer.status_code, f"MLflow answers: {content.get('message', answer.reason)}")
        return dict(content)


def _listed(model: str, cursor: Cursor) -> list[dict[str, Any]]:
    cursor.execute("SELECT to_jsonb(d) FROM serving.deployments d WHERE model = %s ORDER BY at DESC LIMIT 1000", (model,))
    return [row for (row,) in cursor.fetchall()]


def _previous(model: str, current: str | None, cursor: Cursor) -> str | None:
    cursor.execute(
        "SELECT previous FROM serving.deployments WHERE model = %s AND alias = %s AND version = %s ORDER BY at DESC LIMIT 1",
        (model, CHAMPION, current),
    )
    row = cursor.fetchone()
    return row[0] if row else None


def _recorded(model: str, cursor: Cursor) -> Recorded:
    """A model's newest deployment."""
    cursor.execute(
        "SELECT id, version, previous FROM serving.deployments WHERE model = %s AND alias = %s ORDER BY at DESC LIMIT 1",
        (model, CHAMPION),
    )
    return Recorded(*(cursor.fetchone() or ()))


def _record(after: Recorded, row: tuple[str, str, str | None, str, str], cursor: Cursor) -> str:
    """Adds model, version, previous, account and reason. The id follows from the deployment before it and the version: several
    that record the same move, such as replicas, do so once.
    """
    model, version, *_ = row
    identifier = str(uuid5(UUID(after.identifier), f"{model}\0{version}"))
    cursor.execute(
        "INSERT INTO serving.deployments (id, alias, model, version, previous, set_by, reason)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
        (identifier, CHAMPION, *row),
    )
    return identifier


def _set_traffic(row: tuple[str, str, float, str, str], cursor: Cursor) -> None:
    cursor.execute("INSERT INTO serving.traffic (model, mode, weight, set_by, reason) VALUES (%s, %s, %s, %s, %s)", row)


def seen(
    champions: Mapping[str, Champion], account: str, is_named: Callable[[str, str], bool], cursor: Cursor
) -> dict[tuple[str, str], UUID]:
    """The deployment of each champion, by model and version, recorded here if its alias was moved in MLflow itself.

    `is_named` asks MLflow whether the alias names a version now: another replica may have recorded a later move.
    """
    deployments = {}
    for model, champion in champions.items():
        recorded, version = _recorded(model, cursor), champion.version
        if champion.is_named and recorded.version != version and is_named(model, version):
            _record(recorded, (model, version, recorded.version, account, _MOVED), cursor)
        cursor.execute(
            "SELECT id FROM serving.deployments WHERE model = %s AND alias = %s AND version = %s ORDER BY at DESC LIMIT 1",
            (model, CHAMPION, version),
        )
        if row := cursor.fetchone():
            deployments[model, version] = UUID(row[0])
    return deployments
