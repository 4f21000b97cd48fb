"""The queue of metric points that this process has not sent yet: many calls, one request.

MLflow 3.17's own queue keeps an event and a future for each call, reports only one call of a failed batch, and can no longer send
when a script ends without ending its run, because Python does not start threads then. Here one thread, started with the first
point, sends the points of a run in batches, and the rest before the process ends (process_end.py).
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlflow.entities import Metric

from mlstack.client import process_end

log = logging.getLogger(__name__)
# Points that may wait in the queue: a killed process loses no more than these. Beyond that, logging waits for room.
LIMIT = 100_000
# Points of a batch: as many as MLflow's server takes at once.
FULL = 1_000
# Seconds between two batches of a run that are not full. The first is sent at once, so that the run is visible to readers.
PAUSE = 1.0
# Seconds that a fork waits for the request in flight: locks that it holds, above all of imports, would stay locked in the
# child. Imports come first; a request that takes longer waits for its answer and holds no lock.
FORK_WAIT = 1.0
# Seconds that the end of a process waits for the server: long enough for any restart of it; then the process ends anyway.
LAST_WAIT = 120.0


class RejectedError(Exception):
    """The server rejects this batch for its content; it may accept some of its points one by one."""


@dataclass
class Batch:
    """Points of one run that are sent together, and which of them could not be stored."""

    run: str
    points: list[Metric] = field(default_factory=list)
    failures: dict[int, Exception] = field(default_factory=dict)
    sent: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Sent:
    """The points of one call, as a future: MLflow's RunOperations waits for it."""

    batch: Batch
    start: int
    stop: int

    def done(self) -> bool:
        return self.batch.sent.is_set()

    def result(self, timeout: float | None = None) -> None:
        """Returns when the points are stored. Raises the reason if one was not, TimeoutError if it takes longer."""
        if not self.batch.sent.wait(timeout):
            raise TimeoutError
        for number, reason in self.batch.failures.items():
            if self.start <= number < self.stop:
                raise reason


@dataclass(frozen=True)
class Loss:
    """Points of one run that could not be stored, and the last reason."""

    count: int
    reason: Exception


class MetricQueue:
    """`send` stores points of a run, or raises; after RejectedError it is called again for each point alone."""

    def __init__(self, send: Callable[[str, Sequence[Metric]], None]) -> None:
        self._send = send
        self._reset()
        # Points that wait are sent by the parent.
        os.register_at_fork(before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._reset)
        process_end.call(self.close)
        process_end.is_covered()  # usually in the main thread: only it may handle signals

    def _reset(self) -> None:
        self._change = threading.Condition()
        self._sending = threading.Lock()
        self._forking = threading.local()
        self._full: deque[Batch] = deque()
        self._open: dict[str, Batch] = {}
        self._accepted = self._done = 0
        self._wanted = 0  # how many of the accepted points a caller waits for
        self._losses: dict[str, Loss] = {}  # by run
        self._last = -math.inf  # when batches that were not full were last sent
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def put(self, run: str, points: Sequence[Metric]) -> list[Sent] | None:
        """The points of this call, as futures. None if no thread could send them later: then the caller has to.

        Waits while LIMIT points are in the queue.
        """
        if not process_end.is_covered() or not self._is_working():
            return None
        with self._change:
            self._change.wait_for(lambda: self._accepted - self._done < LIMIT)
            if self._is_closed:
                return None
            sent = []
            for first in range(0, len(points), FULL):
                some = points[first : first + FULL]
                batch = self._open.get(run)
                if batch is None or len(batch.points) + len(some) > FULL:
                    if batch:
                        self._full.append(batch)
                    batch = self._open[run] = Batch(run)
                start = len(batch.points)
                batch.points.extend(some)
                sent.append(Sent(batch, start, len(batch.points)))
            if self._accepted == self._done or self._full:
                self._change.notify_all()
            self._accepted += len(points)
        return sent

    @property
    def waiting(self) -> int:
        """The number of points that are not stored yet."""
        return self._accepted - self._done

    def flush(self, timeout: float | None = None) -> None:
        """Returns when every point accepted before is stored or given up, or after `timeout` seconds."""
        if threading.current_thread() is self._thread:  # `send` may make other calls, which flush
            return
        with self._change:
            goal = self._wanted = self._accepted
            self._change.notify_all()
            self._change.wait_for(lambda: self._done >= goal, timeout)

    def close(self) -> None:
        """Sends the remaining points before the process ends. No point is accepted after that."""
        self._is_closed = True
        self.flush(LAST_WAIT)
        if self.waiting:
            log.error("%d metric points are lost: the process ended before the server answered.", self.waiting)

    def losses(self, run: str | None = None) -> dict[str, Loss]:
        """The losses of this run, or of all runs, since the last call."""
        with self._change:
            lost = dict(self._losses) if run is None else {run: self._losses[run]} if run in self._losses else {}
            for run_id in lost:
                del self._losses[run_id]
        return lost

    def _before_fork(self) -> None:
        is_sender = threading.current_thread() is self._thread
        self._forking.holds = not is_sender and self._sending.acquire(timeout=FORK_WAIT)

    def _after_fork(self) -> None:
        if self._forking.holds:
            self._sending.release()

    def _is_working(self) -> bool:
        """Whether a thread sends: none can be started once Python is ending."""
        if self._thread is None:
            with self._change:
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name="mlstack-metrics", daemon=True)
                    try:
                        thread.start()
                    except RuntimeError:
                        return False
                    self._thread = thread
        return True

    def _work(self) -> None:
        while True:
            for batch in self._due():
                with self._sending:
                    self._deliver(batch)

    def _due(self) -> list[Batch]:
        """Full batches at once, others after the pause or when a caller waits for them."""
        with self._change:
            self._change.wait_for(lambda: self._open)
            pause = self._last + PAUSE - time.monotonic()
            self._change.wait_for(lambda: self._full or self._wanted > self._done, max(0, pause))
            batches = list(self._full)
            self._full.clear()
            if not batches or self._wanted > self._done:
                batches += self._open.values()
                self._open = {}
                self._last = time.monotonic()
            return batches

    def _deliver(self, batch: Batch) -> None:
        try:
            self._send(batch.run, batch.points)
        except RejectedError as rejected:
            batch.failures = self._one_by_one(batch) if len(batch.points) > 1 else {0: _cause(rejected)}
        except Exception as error:  # noqa: BLE001  (reported to the callers that wait)
            batch.failures = dict.fromkeys(range(len(batch.points)), error)
        if batch.failures:
            reason = batch.failures[max(batch.failures)]
            log.error("%d points of run %s could not be stored: %s", len(batch.failures), batch.run, reason)
        with self._change:
            self._done += len(batch.points)
            if batch.failures:
                before = self._losses.get(batch.run)
                self._losses[batch.run] = Loss(len(batch.failures) + (before.count if before else 0), reason)
            batch.sent.set()
            self._change.notify_all()

    def _one_by_one(self, batch: Batch) -> dict[int, Exception]:
        failures: dict[int, Exception] = {}
        for number, point in enumerate(batch.points):
            try:
                self._send(batch.run, [point])
            except Exception as error:  # noqa: BLE001  (as above)
                failures[number] = _cause(error)
        return failures


def _cause(error: Exception) -> Exception:
    """The server's error, if it rejected the points."""
    cause = error.__cause__ if isinstance(error, RejectedError) else None
    return cause if isinstance(cause, Exception) else error
