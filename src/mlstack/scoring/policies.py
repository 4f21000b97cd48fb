"""The routes of policies: put a version, try it on logged decisions, and activate it. They need an account of MLflow."""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from psycopg2.extensions import cursor as Cursor  # noqa: N812
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlstack.scoring.access import account_of
from mlstack.scoring.bodies import json_body
from mlstack.scoring.history import answered
from mlstack.scoring.policy import Case, Policy, PolicyError, replay
from mlstack.scoring.records import Records
from mlstack.scoring.store import Store

REPLAYED = 10_000  # decisions
LONGEST_REASON = 1_000

Examples = Callable[[str], Sequence[Case]]


class Policies:
    """Versions of policies. `examples` gives the input examples of the served versions of a model."""

    def __init__(self, store: Store, records: Records, examples: Examples) -> None:
        self._store, self._records, self._examples = store, records, examples

    async def listed(self, request: Request) -> Response:
        """The versions of a model's policy, and which one decides."""
        account_of(request)
        model = request.path_params["name"]
        versions = await answered(self._store, partial(_versions, model))
        active = self._records.policy(model)
        return JSONResponse({"model": model, "active": active and active.version, "versions": versions})

    async def put(self, request: Request) -> Response:
        """Stores a definition as the next version, after trying it. With ?check=true it is only tried."""
        account, model = account_of(request), request.path_params["name"]
        definition = await json_body(request)
        tried = await self._tried(model, 0, definition)
        if request.query_params.get("check") == "true":
            return JSONResponse({"version": None, **tried})
        version = await answered(self._store, partial(_put, model, json.dumps(definition), account))
        return JSONResponse({"version": version, **tried})

    async def activate(self, request: Request) -> Response:
        """Lets a version decide from now on, after trying it on the newest decisions; without a version, none."""
        account, model = account_of(request), request.path_params["name"]
        body = await json_body(request)
        version, reason = body.get("version"), reason_of(body)
        tried: dict[str, Any] = {}
        if version is not None:
            if type(version) is not int:
                raise HTTPException(400, "The version is a number.")
            tried = await self._tried(model, version, await answered(self._store, partial(_definition, model, version)))
        await answered(self._store, partial(_activate, model, version, account, reason))
        await self._records.refresh()
        return JSONResponse({"active": version, **tried})

    async def _tried(self, model: str, version: int, definition: object) -> dict[str, Any]:
        """What it would change among the newest decisions. Raises HTTPException 422 if it cannot decide."""
        cases = await answered(self._store, partial(_newest, model))

        def trial() -> dict[str, Any]:
            policy = Policy.of(model, version, definition)
            policy.require_total([*self._examples(model), *cases[:100]])
            return replay(policy, cases).as_json()

        try:
            return await asyncio.to_thread(trial)
        except PolicyError as error:
            raise HTTPException(422, f"The policy cannot be used: {error}.") from None


def reason_of(body: dict[str, Any]) -> str:
    """Why somebody does what a request asks for. Raises HTTPException 400 if it does not say."""
    reason = body.get("reason")
    if not isinstance(reason, str) or not reason.strip() or len(reason) > LONGEST_REASON or "\0" in reason:
        raise HTTPException(400, "Say why: the field reason is a text.")
    return reason


def _versions(model: str, cursor: Cursor) -> list[dict[str, Any]]:
    cursor.execute(
        "SELECT to_jsonb(p) - 'model' FROM serving.policies p WHERE model = %s ORDER BY version DESC LIMIT 100", (model,)
    )
    return [row for (row,) in cursor.fetchall()]


def _put(model: str, definition: str, account: str, cursor: Cursor) -> int:
    cursor.execute(
        "INSERT INTO serving.policies (model, version, definition, put_by)"
        " SELECT %(model)s, coalesce(max(version), 0) + 1, %(definition)s::jsonb, %(account)s"
        " FROM serving.policies WHERE model = %(model)s RETURNING version",
        {"model": model, "definition": definition, "account": account},
    )
    (version,) = cursor.fetchone() or (0,)
    return int(version)


def _definition(model: str, version: int, cursor: Cursor) -> Any:
    cursor.execute("SELECT definition FROM serving.policies WHERE model = %s AND version = %s", (model, version))
    row = cursor.fetchone()
    if row is None:
        raise HTTPException(404, "There is no such version of the policy.")
    return row[0]


def _activate(model: str, version: int | None, account: str, reason: str, cursor: Cursor) -> None:
    cursor.execute(
        "INSERT INTO serving.policy_activations (model, version, set_by, reason) VALUES (%s, %s, %s, %s)",
        (model, version, account, reason),
    )


def _newest(model: str, cursor: Cursor) -> list[Case]:
    cursor.execute(
        "SELECT features, score, entity, decision FROM serving.decisions"
        " WHERE model = %s AND role <> 'shadow' ORDER BY time DESC LIMIT %s",
        (model, REPLAYED),
    )
    return [Case(features, score, entity, decision) for features, score, entity, decision in cursor.fetchall()]
