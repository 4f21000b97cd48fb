"""The decision log: one row in Postgres for each scored row of a request.

What was scored while the last commit ran is the next commit, as one COPY: with 16 clients a commit serves many answers.
"""

import asyncio
import csv
import io
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from pydantic_core import to_json

from mlstack.scoring.metrics import Metrics
from mlstack.scoring.store import Store, StoreError

log = logging.getLogger(__name__)

MOST_WAITING = 20_000  # rows
SECONDS = 5  # for a commit before the answer
PAUSE = 1  # seconds until a commit after the answer is tried again
UPKEEP = 3600  # seconds between two looks at the partitions
_COLUMNS = (
    "time, request, row, model, version, role, policy_version, client, entity, features, score, lower_bound, upper_bound,"
    " decision, latency_ms, deployment"
)
_COPY = f"COPY serving.decisions ({_COLUMNS}) FROM STDIN WITH (FORMAT csv)"
# In JSON: after an even number of backslashes, or it is a backslash and the text u0000.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class Mode(StrEnum):
    """When a decision is committed: before its answer, after it, or never."""

    BEFORE = "before"
    AFTER = "after"
    OFF = "off"


class LogError(Exception):
    """A decision was not committed, so that it may not be answered."""

    retry_after = 1  # seconds


@dataclass(frozen=True)
class Decisions:
    """What one request was answered, row by row. `decided` are the policy's decisions, None without a policy."""

    request: UUID
    model: str
    version: str
    role: str
    client: str
    entity: str | None
    rows: Sequence[Any]
    scores: Sequence[Any]
    started: float  # of time.perf_counter
    policy_version: int | None = None
    decided: Sequence[str] | None = None
    deployment: UUID | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def cells(self) -> Iterator[tuple[object, ...]]:
        """The rows of the table."""
        latency = (time.perf_counter() - self.started) * 1000
        decided: Sequence[str | None] = self.decided or [None] * len(self.rows)
        for number, (row, score, decision) in enumerate(zip(self.rows, self.scores, decided, strict=True)):
            yield (
                self.time.isoformat(), self.request, number, self.model, self.version, self.role, self.policy_version,
                self.client, self.entity, _json(row), _json(score), *_bounds(score), decision, f"{latency:.3f}", self.deployment,
            )  # fmt: skip


@dataclass(eq=False)
class _Entry:
    rows: list[tuple[object, ...]]
    committed: asyncio.Future[None] | None  # None if nobody waits for it

    @property
    def is_given_up(self) -> bool:
        """Whether the client has had an answer that its decision is not stored."""
        return self.committed is not None and self.committed.done()


class DecisionLog:
    """Commits decisions. Belongs to one event loop."""

    def __init__(self, mode: Mode, store: Store, metrics: Metrics) -> None:
        self.mode, self._store, self._metrics = mode, store, metrics
        self._waiting: list[_Entry] = []
        self._rows = 0  # that wait
        self._running: asyncio.Task[None] | None = None

    async def record(self, decisions: Decisions) -> None:
        """In the mode `before`, returns when the decisions are committed; raises LogError if they are not in time."""
        if self.mode is Mode.OFF or not decisions.rows:
            return
        is_full = self._rows + len(decisions.rows) > MOST_WAITING
        if is_full:
            self._count("failed" if self.mode is Mode.BEFORE else "dropped", len(decisions.rows))
            if self.mode is Mode.BEFORE:
                raise LogError
            return
        future = asyncio.get_running_loop().create_future() if self.mode is Mode.BEFORE else None
        entry = _Entry(list(decisions.cells()), future)
        self._waiting.append(entry)
        self._rows += len(entry.rows)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        if future:
            await self._committed(entry, future)

    async def follow(self) -> None:
        """Keeps a partition ready for each month, and drops those past the retention, until it is cancelled."""
        while self.mode is not Mode.OFF:
            seconds = UPKEEP
            try:
                for action, partition in await self._store.run(_maintain):
                    log.info("partition %s of the decision log %s", partition, action)
            except (StoreError, psycopg2.Error) as error:  # rows go to the default partition meanwhile
                log.warning("the partitions of the decision log are not looked after: %s", str(error).strip())
                seconds = 10
            await asyncio.sleep(seconds)

    async def flush(self) -> None:
        """Waits until what was recorded is committed, before the service stops, but not for ever."""
        if self._running and not (await asyncio.wait([self._running], timeout=SECONDS))[0]:
            log.error("%d decisions are lost: Postgres does not answer, and the service stops", self._rows)

    async def _committed(self, entry: _Entry, future: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await future
        except TimeoutError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._rows -= len(entry.rows)
            self._count("failed", len(entry.rows))
            raise LogError from None

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting, self._rows = self._waiting, [], 0
                await self._commit(group)
        finally:
            self._running = None

    async def _commit(self, group: Sequence[_Entry]) -> None:
        rows = [row for entry in group for row in entry.rows]
        while True:
            try:
                committed = await self._store.run(partial(_copy, group))
            except StoreError as error:
                log.warning("%d decisions are not committed: %s", len(rows), error)
                if self.mode is Mode.BEFORE:
                    self._fail(group)
                    return
                self._rows = len(rows) + sum(len(entry.rows) for entry in self._waiting)
                await asyncio.sleep(PAUSE)
                continue
            except psycopg2.errors.UniqueViolation:
                committed = len(rows)  # the connection was lost after the commit, and before its acknowledgement
            except psycopg2.Error as error:
                if len(group) > 1:  # what Postgres does not take fails no neighbour
                    for entry in group:
                        await self._commit([entry])
                    return
                # Not the error's text, which may have values of the request.
                log.error("a decision cannot be stored: %s", type(error).__name__)  # noqa: TRY400
                self._fail(group)
                return
            break
        self._count("committed", committed)
        for entry in group:
            if entry.committed and not entry.committed.done():
                entry.committed.set_result(None)

    def _fail(self, group: Sequence[_Entry]) -> None:
        for entry in group:
            self._count("failed", len(entry.rows))
            if entry.committed and not entry.committed.done():
                entry.committed.set_exception(LogError())

    def _count(self, result: str, rows: int) -> None:
        self._metrics.decisions.add(rows, result=result)


def new_request() -> UUID:
    """A UUIDv7: it begins with the time, so that rows of one time are together in the index."""
    milliseconds, random = time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10))
    low = (random >> 64 & 0xFFF) << 64 | (random & ((1 << 62) - 1))
    return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | low)


def _copy(group: Sequence[_Entry], cursor: Cursor) -> int:
    # Connecting may have taken longer than a client waits.
    rows = [row for entry in group if not entry.is_given_up for row in entry.rows]
    text = io.StringIO()
    csv.writer(text).writerows(rows)  # None is an empty cell, which Postgres reads as NULL
    text.seek(0)
    cursor.copy_expert(_COPY, text)
    return len(rows)


def _maintain(cursor: Cursor) -> list[tuple[str, str]]:
    cursor.execute("SELECT action, partition FROM serving.maintain()")
    return list(cursor.fetchall())


def _json(value: object) -> str:
    text = to_json(value, inf_nan_mode="null", bytes_mode="base64").decode()
    return _NUL.sub(r"\1\\ufffd", text) if "\\u0000" in text else text  # Postgres stores no NUL


def _bounds(score: object) -> tuple[float | None, float | None]:
    """The interval of a model that answers with one: in the columns `lower` and `upper`."""
    if not isinstance(score, dict):
        return None, None
    lower, upper = score.get("lower"), score.get("upper")
    is_interval = all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in (lower, upper))
    return (lower, upper) if is_interval else (None, None)
