"""The routes: MLflow's scoring protocol, the Open Inference Protocol (V2), and what watches the service."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from mlflow.version import VERSION
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mlstack import __version__
from mlstack.scoring import formats
from mlstack.scoring.access import error
from mlstack.scoring.batches import LateError, OverloadedError
from mlstack.scoring.catalogue import Catalogue, Served, restart_if_failed
from mlstack.scoring.metrics import CONTENT_TYPE, Metrics
from mlstack.scoring.registry import Target
from mlstack.scoring.schema import InputError, Row, Schema

LARGEST_BODY = 16 << 20  # bytes
BODY_SECONDS = 30

Decode = Callable[[Schema, bytes], Sequence[Row]]
Encode = Callable[[Served, Sequence[Any]], bytes]


class Scoring:
    """The service's application, around its catalogue."""

    def __init__(self, catalogue: Callable[[], Catalogue], metrics: Metrics) -> None:
        self._make, self._metrics = catalogue, metrics
        self._catalogue: Catalogue

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/invocations", self.invocations, methods=["POST"]),
                Route("/endpoints/{name}/invocations", self.invocations, methods=["POST"]),
                Route("/v2/models/{name}/infer", self.infer, methods=["POST"]),
                Route("/v2/models/{name}/versions/{version}/infer", self.infer, methods=["POST"]),
                Route("/v2/models/{name}", self.model),
                Route("/v2/models/{name}/ready", self.is_ready),
                Route("/v2", self.server),
                Route("/v2/health/live", self.ping),
                Route("/v2/health/ready", self.ping),
                Route("/", self.ping),
                Route("/ping", self.ping),
                Route("/health", self.ping),
                Route("/version", self.version),
                Route("/models", self.models),
                Route("/metrics", self.metrics),
                Route("/openapi.json", self.openapi),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._catalogue = self._make()
        await self._catalogue.start()
        following = asyncio.create_task(self._catalogue.follow())
        following.add_done_callback(restart_if_failed)
        yield
        following.cancel()

    # ---- scoring ---------------------------------------------------------------------------------

    async def invocations(self, request: Request) -> Response:
        decode = partial(_rows_of, content_type=request.headers.get("content-type", "application/json"))
        return await self._answered(request, decode, lambda _, predictions: formats.answer_of(predictions))

    async def infer(self, request: Request) -> Response:
        identifier = ""

        def decode(schema: Schema, body: bytes) -> Sequence[Row]:
            nonlocal identifier
            rows, identifier = formats.v2_rows_of(schema, body)
            return rows

        def encode(served: Served, predictions: Sequence[Any]) -> bytes:
            return formats.v2_answer_of(served.version.model, served.version.number, identifier, predictions)

        return await self._answered(request, decode, encode)

    async def _answered(self, request: Request, decode: Decode, encode: Encode) -> Response:
        """Reads the body, and answers with the version that is served when it has arrived."""
        started = time.perf_counter()
        labels = {"model": "", "version": ""}
        try:
            body = await _body(request)
            served = self._find(request.path_params.get("name"), request.path_params.get("version"))
            labels = {"model": served.version.model, "version": served.version.number}
            rows = decode(served.loaded.schema, body)
            calls = served.batches.calls
            predictions = await served.batches.answers(rows)
            response = Response(encode(served, predictions), media_type="application/json")
            response.headers["X-Mlstack-Model"], response.headers["X-Mlstack-Version"] = labels.values()
            self._metrics.rows.add(len(rows), **labels)
            self._metrics.calls.add(max(0, served.batches.calls - calls), **labels)
        except (InputError, formats.FormatError, formats.TooManyRowsError, OverloadedError, LateError) as problem:
            response = _explained(problem)
        except HTTPException as problem:
            response = await _http_error(request, problem)
        self._metrics.requests.add(1, **labels, status=str(response.status_code))
        self._metrics.seconds.add(time.perf_counter() - started, **labels)
        return response

    def _find(self, name: str | None, version: str | None = None) -> Served:
        """The version that a request names. Raises HTTPException 404."""
        served = self._catalogue.served
        if name is None:
            if len({target.model for target in served}) != 1:
                raise HTTPException(
                    404, "Not exactly one model is served: name it in /endpoints/NAME/invocations. /models lists them."
                )
            return next(iter(served.values()))
        model, _, alias = name.partition("@")
        for target, candidate in served.items():
            if target.model == model and (not alias or target.alias == alias) and version in (None, candidate.version.number):
                return candidate
        raise HTTPException(404, "No such model or version is served. /models lists what is, and why others are not.")

    # ---- what is served --------------------------------------------------------------------------

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
        return JSONResponse({"name": "mlstack-scoring", "version": __version__, "extensions": []})

    async def model(self, request: Request) -> Response:
        served = self._find(request.path_params["name"])
        inputs = [
            {"name": column.name, "datatype": _V2_TYPES[column.type], "shape": [-1]}
            for column in served.loaded.schema.columns.values()
        ]
        described = {"name": served.version.model, "versions": [served.version.number], "platform": "mlflow", "inputs": inputs}
        return JSONResponse({**described, "outputs": []})

    async def is_ready(self, request: Request) -> Response:
        served = self._find(request.path_params["name"])
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


def _rows_of(schema: Schema, body: bytes, *, content_type: str) -> Sequence[Row]:
    return formats.rows_of(schema, content_type, body)


async def _body(request: Request) -> bytes:
    """The whole body. Raises HTTPException 413 or 408."""
    too_large = HTTPException(413, f"The body is larger than {LARGEST_BODY >> 20} MiB: send the rows in several requests.")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                body += block
                if len(body) > LARGEST_BODY:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, "The body takes too long.") from None
    except ClientDisconnect:
        raise HTTPException(400, "The client disconnected.") from None
    return bytes(body)


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
        case LateError():
            return error(504, "TEMPORARILY_UNAVAILABLE", "The model did not answer in time.")
        case _:
            return error(400, "BAD_REQUEST", f"{problem}.")


async def _http_error(_: Request, problem: Exception) -> JSONResponse:
    status, message = (problem.status_code, problem.detail) if isinstance(problem, HTTPException) else (500, "")
    code = {404: "RESOURCE_DOES_NOT_EXIST", 405: "BAD_REQUEST"}.get(status, "INVALID_PARAMETER_VALUE")
    return error(status, code, message)


async def _unexpected_error(_: Request, problem: Exception) -> JSONResponse:
    return error(500, "INTERNAL_ERROR", f"The service failed: {type(problem).__name__}. Its log says more.")
