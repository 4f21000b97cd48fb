"""The routes: MLflow's scoring protocol, the Open Inference Protocol (V2), and what watches the service."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

import psycopg2
from mlflow.version import VERSION
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mlstack import __version__
from mlstack.scoring import formats, inference
from mlstack.scoring.access import error
from mlstack.scoring.answer import Answer, Subject
from mlstack.scoring.batches import LateError, OverloadedError
from mlstack.scoring.bodies import whole_body
from mlstack.scoring.catalogue import CHAMPION, INTERVAL, Catalogue, Champion, Served, restart_if_failed
from mlstack.scoring.decisions import DecisionLog, LogError, Mode, new_request
from mlstack.scoring.deployments import Deployments, seen
from mlstack.scoring.explain import MOST_EXPLAINED, explain
from mlstack.scoring.features import Features
from mlstack.scoring.history import History
from mlstack.scoring.metrics import CONTENT_TYPE, Metrics
from mlstack.scoring.model import same
from mlstack.scoring.policies import Policies
from mlstack.scoring.policy import Case, Policy, PolicyError
from mlstack.scoring.records import Records
from mlstack.scoring.registry import RegistryError, Target
from mlstack.scoring.schema import InputError, Row
from mlstack.scoring.store import Store, StoreError

log = logging.getLogger(__name__)

LONGEST_ENTITY = 200
FEW_ROWS = 200  # for a policy, before other requests would notice
MOST_SHADOWED = 1_000  # rows that wait for a challenger's shadow answer


Decode = Callable[[Served, bytes], Awaitable[Sequence[Row]]]
Encode = Callable[[Answer], tuple[bytes, Mapping[str, str]]]


class Scoring:
    """The service's application, around its catalogue."""

    def __init__(
        self,
        catalogue: Callable[[], Catalogue],
        decision_log: DecisionLog,
        records: Records,
        store: Store,
        metrics: Metrics,
        *,
        features: Features,
        mlflow: str,
        account: str,
    ) -> None:
        self._make, self._log, self._records, self._store, self._metrics = catalogue, decision_log, records, store, metrics
        self._account = account
        self._history = History(store)
        self._features = features
        self._policies = Policies(store, records, self._examples)
        self._deploying = Deployments(store, records, mlflow)
        self._deployments: Mapping[tuple[str, str], UUID] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._catalogue: Catalogue

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/invocations", self.invocations, methods=["POST"]),
                Route("/endpoints/{name}/invocations", self.invocations, methods=["POST"]),
                Route("/endpoints/{name}/entities", self.entities, methods=["POST"]),
                *self._features.routes(),
                Route("/v2/models/{name}/infer", self.infer, methods=["POST"]),
                Route("/v2/models/{name}/versions/{version}/infer", self.infer, methods=["POST"]),
                Route("/v2/models/{name}", self.model),
                Route("/v2/models/{name}/versions/{version}", self.model),
                Route("/v2/models/{name}/ready", self.is_ready),
                Route("/v2/models/{name}/versions/{version}/ready", self.is_ready),
                Route("/v2", self.server),
                Route("/v2/health/live", self.ping),
                Route("/v2/health/ready", self.ping),
                Route("/", self.ping),
                Route("/ping", self.ping),
                Route("/health", self.ping),
                Route("/version", self.version),
                Route("/models", self.models),
                Route("/decisions", self._history.decisions),
                Route("/labels", self._history.labels, methods=["POST"]),
                Route("/policies/{name}", self._policies.listed, methods=["GET"]),
                Route("/policies/{name}", self._policies.put, methods=["POST"]),
                Route("/policies/{name}/activate", self._policies.activate, methods=["POST"]),
                Route("/deployments/{name}", self._deploying.listed),
                Route("/deployments/{name}/promote", self._deploying.promote, methods=["POST"]),
                Route("/deployments/{name}/rollback", self._deploying.rollback, methods=["POST"]),
                Route("/deployments/{name}/traffic", self._deploying.traffic, methods=["POST"]),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.openapi),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._catalogue = self._make()
        self._records.start()
        await self._catalogue.start()
        following = (self._catalogue.follow(), self._log.follow(), self._records.follow(), self._follow_champions())
        tasks = [asyncio.create_task(work) for work in following]
        for task in tasks:
            task.add_done_callback(restart_if_failed)
        yield
        for task in tasks:
            task.cancel()
        await self._log.flush()

    # ---- scoring ---------------------------------------------------------------------------------

    async def invocations(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "application/json")

        async def decode(served: Served, body: bytes) -> Sequence[Row]:
            return formats.rows_of(served.loaded.schema, content_type, body)

        return await self._answered(request, decode, _as_json)

    async def entities(self, request: Request) -> Response:
        """Scores rows that have the keys of entities; the features that the version was trained with are looked up."""
        times: list[str] = []  # a challenger's features are those of the same time

        async def decode(served: Served, body: bytes) -> Sequence[Row]:
            rows = formats.entities_of(body)
            timed = [{**row, "at": at} for row, at in zip(rows, times, strict=True)] if times else rows
            looked_up = await self._features.of(served.loaded.features, timed)
            times[:] = [entity.at.isoformat() for entity in looked_up]
            return served.loaded.schema.checked([{**row, **entity.features} for row, entity in zip(rows, looked_up, strict=True)])

        return await self._answered(request, decode, _as_json)

    async def infer(self, request: Request) -> Response:
        queries: list[inference.Query] = []

        async def decode(served: Served, body: bytes) -> Sequence[Row]:
            queries.append(inference.query_of(served.loaded.schema, body, request.headers.get(inference.HEADER)))
            return queries[-1].rows

        def encode(answer: Answer) -> tuple[bytes, Mapping[str, str]]:
            version = answer.served.version
            return inference.answer_of(
                queries[0],
                version.model,
                version.number,
                answer.predictions,
                decided=answer.decided,
                parameters=answer.parameters,
            )

        return await self._answered(request, decode, encode)

    async def _answered(self, request: Request, decode: Decode, encode: Encode) -> Response:
        """Reads the body, and answers with the version that is served when it has arrived."""
        started = time.perf_counter()
        labels = {"model": "", "version": ""}
        try:
            body = await whole_body(request)
            target, served = self._find(request.path_params.get("name"), request.path_params.get("version"))
            labels = {"model": served.version.model, "version": served.version.number}
            subject = Subject(new_request(), request.state.client, _entity(request), started)
            is_bare = "@" not in request.path_params.get("name", "") and "version" not in request.path_params
            challenger = self._catalogue.challenger(target.model) if is_bare else None
            answer = await self._by_canary(challenger, decode, body, subject) if challenger else None
            if answer is None:
                answer = await self._scored(served, target.alias, await decode(served, body), subject)
            labels = {"model": answer.served.version.model, "version": answer.served.version.number}
            content, headers = encode(await self._with_explanations(request, answer))
            response = Response(content, headers={**headers, **answer.headers})
            await self._log.record(answer.decisions(self._deployments.get((target.model, answer.served.version.number))))
            self._metrics.rows.add(len(answer.rows), **labels)
            if challenger and answer.role == CHAMPION and self._records.traffic(target.model).mode == "shadow":
                self._in_background(self._shadow(challenger, decode, body, answer))
        except (InputError, formats.FormatError, formats.TooManyRowsError, OverloadedError, LateError, LogError) as problem:
            response = _explained(problem)
        except HTTPException as problem:
            response = await _http_error(request, problem)
        self._metrics.requests.add(1, **labels, status=str(response.status_code))
        self._metrics.seconds.add(time.perf_counter() - started, **labels)
        return response

    async def _with_explanations(self, request: Request, answer: Answer) -> Answer:
        """The answer with an explanation of each row, if the request has ?explain=true. Raises TooManyRowsError."""
        if request.query_params.get("explain") != "true":
            return answer
        if len(answer.rows) > MOST_EXPLAINED:
            raise formats.TooManyRowsError(f"an explained request has more than {MOST_EXPLAINED} rows")
        example, predict = answer.served.loaded.example, answer.served.batches.answers
        rows = zip(answer.rows, answer.predictions, strict=True)
        return replace(answer, explanations=[await explain(row, predicted, example, predict) for row, predicted in rows])

    async def _scored(self, served: Served, role: str, rows: Sequence[Row], subject: Subject) -> Answer:
        """What a version answers, and what the model's policy decides on it."""
        calls = served.batches.calls
        predictions = await served.batches.answers(rows)
        labels = {"model": served.version.model, "version": served.version.number}
        self._metrics.calls.add(max(0, served.batches.calls - calls), **labels)
        policy = self._records.policy(served.version.model)
        is_logged = self._log.mode is not Mode.OFF
        if policy is None:
            return Answer(served, role, rows, predictions, subject, is_logged=is_logged)
        decide = partial(self._decided, policy, rows, predictions, subject.entity)
        decided = decide() if len(rows) <= FEW_ROWS else await asyncio.to_thread(decide)
        return Answer(served, role, rows, predictions, subject, decided, policy.version, is_logged=is_logged)

    def _decided(self, policy: Policy, rows: Sequence[Row], predictions: Sequence[Any], entity: str | None) -> list[str]:
        """A decision for each row. Where a rule fails, on a row unlike those of its trial, `otherwise` decides; it is counted."""
        decided = []
        for row, prediction in zip(rows, predictions, strict=True):
            try:
                decided.append(policy.decide(Case(row, prediction, entity)))
            except PolicyError as error:
                self._metrics.policy_errors.add(1, model=policy.model, policy_version=str(policy.version))
                log.debug("version %d of the policy of %s: %s", policy.version, policy.model, error)
                decided.append(policy.otherwise)
        return decided

    async def _by_canary(self, challenger: Served, decode: Decode, body: bytes, subject: Subject) -> Answer | None:
        """The challenger's answer, if the entity is in its share. None if not, or if it cannot answer: then the champion does."""
        model = challenger.version.model
        if not self._records.traffic(model).is_canary(model, subject.entity or str(subject.request)):
            return None
        try:
            return await self._scored(challenger, "canary", await decode(challenger, body), subject)
        except (InputError, OverloadedError):
            self._metrics.challenger.add(1, model=model, version=challenger.version.number, result="failed")
            return None

    async def _shadow(self, challenger: Served, decode: Decode, body: bytes, answer: Answer) -> None:
        """Scores the same rows with the challenger, after the answer, and compares. If it is behind, rows are skipped."""
        labels = {"model": challenger.version.model, "version": challenger.version.number}
        started = time.perf_counter()
        if challenger.batches.waiting + len(answer.rows) > MOST_SHADOWED:
            self._metrics.challenger.add(len(answer.rows), **labels, result="skipped")
            return
        try:
            rows = await decode(challenger, body)
            subject = Subject(answer.subject.request, answer.subject.client, answer.subject.entity, started)
            shadow = await self._scored(challenger, "shadow", rows, subject)
            await self._log.record(shadow.decisions(None))
        except (InputError, OverloadedError, LateError, LogError):
            self._metrics.challenger.add(len(answer.rows), **labels, result="failed")
            return
        agreeing = sum(map(same, *((shadow.decided, answer.decided) if shadow.decided and answer.decided else
                                   (shadow.predictions, answer.predictions))))  # fmt: skip
        self._metrics.challenger.add(agreeing, **labels, result="agree")
        self._metrics.challenger.add(len(answer.rows) - agreeing, **labels, result="differ")
        self._metrics.challenger_seconds.add(time.perf_counter() - started, **labels)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _follow_champions(self) -> None:
        """Keeps the deployment of each champion at hand, and records those that were made in MLflow, until it is cancelled."""
        known: Mapping[str, Champion] = {}
        while True:
            champions = self._catalogue.champions
            if champions != known:
                try:
                    look = partial(seen, champions, self._account, self._catalogue.is_champion)
                    self._deployments = await self._store.run(look)
                    known = champions
                except (StoreError, RegistryError, psycopg2.Error) as error:
                    # Others say that Postgres or MLflow does not answer: records.py and catalogue.py.
                    log.debug("the deployments are not known: %s", error)
            await asyncio.sleep(INTERVAL)

    def _find(self, name: str | None, version: str | None = None) -> tuple[Target, Served]:
        """The version that a request names. Raises HTTPException 404."""
        model, _, alias = (name or "").partition("@")
        match = self._catalogue.find(model or None, alias, version)
        if match is None and name is None:
            raise HTTPException(
                404, "Not exactly one model is served: name it in /endpoints/NAME/invocations. /models lists them."
            )
        if match is None:
            raise HTTPException(404, "No such model or version is served. /models lists what is, and why others are not.")
        return match

    # ---- what is served --------------------------------------------------------------------------

    def _examples(self, model: str) -> list[Case]:
        """The input examples of the served versions of a model, for trying a policy."""
        served = [served for target, served in self._catalogue.served.items() if target.model == model]
        return [Case(row, 0.0) for version in served for row in version.loaded.example]

    async def ping(self, _: Request) -> Response:
        return PlainTextResponse("\n")

    async def version(self, _: Request) -> Response:
        return PlainTextResponse(VERSION)

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def models(self, _: Request) -> Response:
        served = [
            {"model": target.model, "alias": target.alias, "version": served.version.number}
            for target, served in self._catalogue.served.items()
        ]
        rejected = [
            {"model": target.model, "alias": target.alias, "version": version.number, "reason": reason}
            for target, (version, reason) in self._catalogue.rejected.items()
        ]
        return JSONResponse({"served": served, "rejected": rejected})

    async def server(self, _: Request) -> Response:
        return JSONResponse({"name": "mlstack-scoring", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def model(self, request: Request) -> Response:
        _, served = self._find(request.path_params["name"], request.path_params.get("version"))
        inputs = [
            {"name": column.name, "datatype": _V2_TYPES[column.type], "shape": [-1]}
            for column in served.loaded.schema.columns.values()
        ]
        described = {"name": served.version.model, "versions": [served.version.number], "platform": "mlflow", "inputs": inputs}
        return JSONResponse({**described, "outputs": []})

    async def is_ready(self, request: Request) -> Response:
        _, served = self._find(request.path_params["name"], request.path_params.get("version"))
        return JSONResponse({"name": served.version.model, "ready": True})

    async def openapi(self, _: Request) -> Response:
        paths = {
            f"/endpoints/{target.model}/invocations": _described(target, served)
            for target, served in self._catalogue.served.items()
        }
        described = {"openapi": "3.1.0", "info": {"title": "mlstack scoring", "version": __version__}, "paths": paths}
        bearer = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        return JSONResponse({**described, "components": bearer, "security": [{"key": []}]})


_V2_TYPES: Mapping[str, str] = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
}


def _described(target: Target, served: Served) -> Mapping[str, Any]:
    rows = {"type": "array", "items": served.loaded.schema.json, "maxItems": formats.MOST_ROWS}
    body = {"type": "object", "properties": {"dataframe_records": rows}, "required": ["dataframe_records"]}
    answer = {"type": "object", "properties": {"predictions": {"type": "array"}}}
    return {
        "post": {
            "summary": f"Version {served.version.number} of {target.model}",
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": {"description": "One prediction for each row.", "content": {"application/json": {"schema": answer}}},
                "422": {"description": "A row does not fit the model's signature."},
                "503": {"description": "Too many rows wait: try again."},
            },
        }
    }


def _entity(request: Request) -> str | None:
    """Whom or what the rows are about, which the client may name."""
    entity = request.headers.get("x-mlstack-entity")
    if entity is not None and len(entity) > LONGEST_ENTITY:
        raise HTTPException(400, f"X-Mlstack-Entity has more than {LONGEST_ENTITY} characters.")
    return entity


def _as_json(answer: Answer) -> tuple[bytes, Mapping[str, str]]:
    explained = None if answer.explanations is None else [explanation.as_json() for explanation in answer.explanations]
    return formats.answer_of(answer.predictions, answer.decided, explained), {"Content-Type": "application/json"}


def _explained(problem: Exception) -> JSONResponse:
    match problem:
        case InputError():
            return error(422, "INVALID_PARAMETER_VALUE", str(problem), **problem.details)
        case formats.TooManyRowsError():
            return error(413, "INVALID_PARAMETER_VALUE", f"{problem}: send them in several requests.")
        case OverloadedError():
            response = error(503, "TEMPORARILY_UNAVAILABLE", "Too many rows wait for an answer. Try again.")
            response.headers["Retry-After"] = str(problem.retry_after)
            return response
        case LogError():
            message = "The decision log cannot be written, and an answer is given only after its decision is stored. Try again."
            response = error(503, "TEMPORARILY_UNAVAILABLE", message)
            response.headers["Retry-After"] = str(problem.retry_after)
            return response
        case LateError():
            return error(504, "TEMPORARILY_UNAVAILABLE", "The model did not answer in time.")
        case _:
            return error(400, "BAD_REQUEST", f"{problem}.")


_CODES: Mapping[int, str] = {
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "BAD_REQUEST",
    503: "TEMPORARILY_UNAVAILABLE",
}


async def _http_error(_: Request, problem: Exception) -> JSONResponse:
    status, message = (problem.status_code, problem.detail) if isinstance(problem, HTTPException) else (500, "")
    return error(status, _CODES.get(status, "INVALID_PARAMETER_VALUE"), message)


async def _unexpected_error(_: Request, problem: Exception) -> JSONResponse:
    return error(500, "INTERNAL_ERROR", f"The service failed: {type(problem).__name__}. Its log says more.")
