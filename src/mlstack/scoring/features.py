"""The routes of features, under /features. A key looks up and sends events; an account also declares, fills and joins."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from pydantic_core import SchemaValidator, ValidationError, core_schema, to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlstack.scoring.access import account_of
from mlstack.scoring.batches import OverloadedError
from mlstack.scoring.bodies import json_body
from mlstack.scoring.feature_store import CONNECTIONS, FeatureError, LookedUp, Store, UnavailableError, View
from mlstack.scoring.schema import InputError

log = logging.getLogger(__name__)

MOST_EVENTS = 1_000  # of one request: they are one transaction, which has 400 ms
MOST_ENTITIES = 10_000
BLOCK = 1 << 18  # bytes that are handed from a thread to the event loop at once
BLOCKS = 4  # that wait for the client
SILENCE = 60  # seconds without a byte from a client, or without one taken by it
UNPROCESSABLE = 422
T = TypeVar("T")


class Features:
    """Declarations, events, training sets and look-ups, for clients of the scoring service."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(sum(CONNECTIONS.values()), "features")

    def routes(self) -> list[Route]:
        return [
            Route("/features/sources", self.create_source, methods=["POST"]),
            Route("/features/sources/{source}/events", self.append, methods=["POST"]),
            Route("/features/sources/{source}/history", self.backfill, methods=["POST"]),
            Route("/features/views", self.create_view, methods=["POST"]),
            Route("/features/views/{reference}", self.view),
            Route("/features/training-set", self.training_set, methods=["POST"]),
            Route("/features/lookup", self.lookup, methods=["POST"]),
        ]

    async def create_source(self, request: Request) -> Response:
        account_of(request)
        body = await _checked(request, name=_TEXT, kind=_TEXT, keys=_TEXTS, types=_TEXT_BY_TEXT)
        await self._run(self._store.create_source, body["name"], body["kind"], body["keys"], body["types"])
        return JSONResponse({})

    async def create_view(self, request: Request) -> Response:
        account_of(request)
        body = await _checked(request, name=_TEXT, keys=_TEXTS, features=_TEXT_BY_TEXT, definition=_TEXT)
        view = await self._run(self._store.create_view, body["name"], body["keys"], body["features"], body["definition"])
        return JSONResponse(_described(view))

    async def view(self, request: Request) -> Response:
        (view,) = await self._run(self._store.views, [request.path_params["reference"]])
        return JSONResponse(_described(view))

    async def append(self, request: Request) -> Response:
        body = await _checked(request, events=_OBJECTS)
        if not 1 <= len(body["events"]) <= MOST_EVENTS:
            raise HTTPException(413, f"A request has 1 to {MOST_EVENTS} events.")
        known = await self._run(self._store.append, request.path_params["source"], body["events"])
        return JSONResponse({"known_at": known.isoformat()})

    async def backfill(self, request: Request) -> Response:
        account_of(request)
        columns = request.query_params.get("columns", "").split(",")
        rows = await self._run(self._store.backfill, request.path_params["source"], columns, _Incoming(request))
        return JSONResponse({"rows": rows})

    async def training_set(self, request: Request) -> Response:
        account_of(request)
        views = await self._run(self._store.views, request.query_params.get("views", "").split(","))
        outgoing = _Outgoing()
        work = asyncio.create_task(self._run(self._write_training_set, views, _Incoming(request), outgoing))
        work.add_done_callback(lambda _: outgoing.end())
        blocks = outgoing.blocks()
        first = await anext(blocks, None)
        if first is None:
            await work  # nothing was written: the error, or an empty set
        return StreamingResponse(_followed(first or b"", blocks, work), media_type="text/csv")

    def _write_training_set(self, views: Sequence[View], spine: "_Incoming", features: "_Outgoing") -> None:
        with io.BufferedWriter(features, BLOCK) as buffer:
            self._store.training_set(views, spine, buffer)

    async def lookup(self, request: Request) -> Response:
        body = await _checked(request, views=_TEXTS, entities=_OBJECTS)
        if len(body["entities"]) > MOST_ENTITIES:
            raise HTTPException(413, f"A request has at most {MOST_ENTITIES} entities.")
        rows = await self._lookup(body["views"], body["entities"])
        answer = {"entities": [{"at": row.at.isoformat(), "features": row.features} for row in rows]}
        return Response(to_json(answer), media_type="application/json")

    async def of(self, references: Sequence[str], entities: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        """The features with which a model scores these entities. Raises InputError or OverloadedError."""
        if not references:
            raise InputError("the model was logged without metadata={'features': …}: send its rows to /invocations")
        try:
            return await self._lookup(references, entities)
        except HTTPException as problem:
            raise (InputError(problem.detail) if problem.status_code == UNPROCESSABLE else OverloadedError()) from None

    async def _lookup(self, references: Sequence[str], entities: Sequence[Mapping[str, Any]]) -> list[LookedUp]:
        views = await self._run(self._store.views, references)
        return await self._run(self._store.lookup, views, entities)

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        """Does work in a thread. Raises HTTPException 422 or 503."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))
        except FeatureError as error:
            raise HTTPException(UNPROCESSABLE, f"{error}.") from None
        except UnavailableError as error:
            log.warning("features are not available: %s", error)
            raise HTTPException(503, "Postgres does not answer in time. Try again.") from None


class _Incoming:
    """The body of a request as a file, for a thread that reads it as it arrives."""

    def __init__(self, request: Request) -> None:
        self._blocks, self._loop = aiter(request.stream()), asyncio.get_running_loop()
        self._rest = memoryview(b"")

    def read(self, size: int = BLOCK) -> bytes:
        while not self._rest:
            block = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            if block is None:
                return b""
            self._rest = memoryview(block)
        part, self._rest = self._rest[:size], self._rest[size:]
        return bytes(part)

    async def _next(self) -> bytes | None:
        async with asyncio.timeout(SILENCE):
            return await anext(self._blocks, None)


class _Outgoing(io.RawIOBase):
    """A file for a thread to write to, whose blocks the event loop sends. The thread waits for a slow client."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._blocks: asyncio.Queue[bytes | None] = asyncio.Queue(BLOCKS)
        self._is_abandoned = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        block = bytes(data)
        asyncio.run_coroutine_threadsafe(self._put(block), self._loop).result()
        return len(block)

    async def _put(self, block: bytes) -> None:
        if self._is_abandoned:
            raise BrokenPipeError
        async with asyncio.timeout(SILENCE):
            await self._blocks.put(block)

    def end(self) -> None:
        """No block follows."""
        asyncio.ensure_future(self._blocks.put(None))  # noqa: RUF006 # there is room when the last block was taken

    async def blocks(self) -> AsyncIterator[bytes]:
        try:
            while (block := await self._blocks.get()) is not None:
                yield block
        finally:
            self._is_abandoned = True
            while not self._blocks.empty():
                self._blocks.get_nowait()


async def _followed(first: bytes, blocks: AsyncIterator[bytes], work: "asyncio.Task[None]") -> AsyncIterator[bytes]:
    """All blocks. An error after the first one breaks the connection, so that no client takes a part for the whole."""
    yield first
    async for block in blocks:
        yield block
    await work


def _described(view: View) -> Mapping[str, Any]:
    features = dict(zip(view.columns, view.types, strict=True))
    return {"reference": view.reference, "name": view.name, "hash": view.hash, "keys": view.keys, "features": features}


_TEXT = core_schema.str_schema(strict=True)
_TEXTS = core_schema.list_schema(_TEXT, strict=True, min_length=1, max_length=200)
_TEXT_BY_TEXT = core_schema.dict_schema(_TEXT, _TEXT, strict=True, max_length=200)
_OBJECTS = core_schema.list_schema(core_schema.dict_schema(_TEXT), strict=True)


async def _checked(request: Request, **fields: core_schema.CoreSchema) -> dict[str, Any]:
    """The body with these fields. Raises HTTPException 400, without the values."""
    schema = core_schema.typed_dict_schema({name: core_schema.typed_dict_field(field) for name, field in fields.items()})
    try:
        checked: dict[str, Any] = SchemaValidator(schema).validate_python(await json_body(request))
    except ValidationError as error:
        place = ".".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
        raise HTTPException(400, f"The body's field {place} is missing, or of another type.") from None
    return checked
