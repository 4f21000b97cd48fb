"""Requests that arrive while a model computes are answered together by its next call.

A call costs about the same for one row as for a hundred, so that this is where the speed comes from; no request waits for
others to arrive.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlstack.scoring.model import ModelError
from mlstack.scoring.schema import InputError, Row

MOST_ROWS = 10_000  # in one call of the model
MOST_WAITING = 20_000  # rows
SECONDS = 30  # for an answer

Answer = Callable[[Sequence[Row]], list[Any]]


class OverloadedError(Exception):
    """More rows wait than can be answered in time."""

    retry_after = 1  # seconds


class LateError(Exception):
    """The model did not answer in time."""


@dataclass(eq=False)
class _Request:
    rows: Sequence[Row]
    answer: asyncio.Future[list[Any]]

    @property
    def columns(self) -> frozenset[str]:
        """Rows with different optional columns are no DataFrame together."""
        return frozenset(self.rows[0])


class Batches:
    """The queue of one model version. Belongs to one event loop."""

    def __init__(self, answer: Answer, seconds: float = SECONDS) -> None:
        self._answer, self._seconds = answer, seconds
        self._waiting: deque[_Request] = deque()
        self._rows = 0  # that wait
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "model")  # a model that hangs holds up no other
        self._is_retired = False
        self.calls = 0

    async def answers(self, rows: Sequence[Row]) -> list[Any]:
        """One value for each row. Raises OverloadedError, LateError, InputError for rows on which the model fails."""
        if not rows:
            return []
        if any(row.keys() != rows[0].keys() for row in rows):
            raise InputError("the rows have different columns", expected="the same columns in each row", found="others")
        if self._rows + len(rows) > MOST_WAITING:
            raise OverloadedError
        self._rows += len(rows)
        request = _Request(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(self._seconds):
                return await request.answer
        except TimeoutError:
            raise LateError from None

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return self._rows

    def retire(self) -> None:
        """Ends the thread when everything that waits has been answered."""
        self._is_retired = True
        if self._running is None:
            self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._run_batch(self._next_batch())
        finally:
            self._running = None
            if self._is_retired:
                self._thread.shutdown(wait=False)

    def _next_batch(self) -> list[_Request]:
        """The oldest request, and those behind it that can be answered with it. Nobody waits for the others any more."""
        batch: list[_Request] = []
        while self._waiting:
            request = self._waiting[0]
            is_full = batch and sum(len(other.rows) for other in batch) + len(request.rows) > MOST_ROWS
            if is_full or (batch and request.columns != batch[0].columns):
                break
            self._waiting.popleft()
            self._rows -= len(request.rows)
            if not request.answer.done():
                batch.append(request)
        return batch

    async def _run_batch(self, batch: Sequence[_Request]) -> None:
        rows = [row for request in batch for row in request.rows]
        if not rows:
            return
        try:
            answers = await self._call(rows)
        except ModelError as error:
            if len(batch) > 1:  # one bad row fails no neighbour
                for request in batch:
                    await self._run_batch([request])
            else:
                _fail(batch[0], await self._explained(rows, error))
            return
        for request in batch:
            taken, answers = answers[: len(request.rows)], answers[len(request.rows) :]
            if not request.answer.done():
                request.answer.set_result(taken)

    async def _call(self, rows: Sequence[Row]) -> list[Any]:
        self.calls += 1
        answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, rows)
        if len(answers) != len(rows):
            raise ModelError(f"it answers {len(rows)} rows with {len(answers)} values")
        return answers

    async def _explained(self, rows: Sequence[Row], error: ModelError) -> InputError:
        """Which row the model fails on, by halving: the first half that fails holds the first such row."""
        start, end = 0, len(rows)
        while end - start > 1:
            middle = (start + end) // 2
            try:
                await self._call(rows[start:middle])
            except ModelError as narrower:
                end, error = middle, narrower
            else:
                start = middle
        reason = type(error.__cause__).__name__ if error.__cause__ else "ModelError"
        message = f"row {start}: the model failed with {reason}"
        return InputError(message, row=start, expected="a row that the model can score", found=reason)


def _fail(request: _Request, error: Exception) -> None:
    if not request.answer.done():
        request.answer.set_exception(error)
