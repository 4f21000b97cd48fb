"""Metric points of this process on their way to the server: many calls, one letter.

MLflow 3.17's own queue keeps an event and a future for each call, tells only one call of a failed batch, and can no longer
send when a script ends without ending its run, because Python lets nobody start a thread by then. Here one thread, which is
there from the first point on, sends what came within a second, the points of a run together, and all of it at the end.
"""

import atexit
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from mlflow.entities import Metric

log = logging.getLogger(__name__)
# Points that may wait to be stored: a killed process loses no more than these. Logging waits for room beyond.
LIMIT = 100_000
# Points of a letter: as many as MLflow's server takes at once.
FULL = 1_000
# Seconds that a point waits for others.
PAUSE = 1.0


@dataclass(frozen=True)
class Letter:
    """Points of one run that are sent together, and what became of them."""

    run: str
    points: list[Metric] = field(default_factory=list)
    stored: "Future[None]" = field(default_factory=Future)


class MetricQueue:
    """`send` stores points of a run, or raises. It is called in one thread, letter by letter."""

    def __init__(self, send: Callable[[str, Sequence[Metric]], None]) -> None:
        self._send = send
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # what waits is the parent's to send
        atexit.register(self.flush)

    def _begin(self) -> None:
        self._change = threading.Condition()
        self._full: list[Letter] = []
        self._open: dict[str, Letter] = {}
        self._accepted = self._done = 0
        self._wanted = 0  # of the accepted ones, those that somebody waits for
        self._dropped: Counter[str] = Counter()  # by run
        self._reason: Exception | None = None
        self._thread: threading.Thread | None = None

    def put(self, run: str, points: Sequence[Metric]) -> "list[Future[None]]":
        """What becomes of these points. Waits while LIMIT points are on their way."""
        with self._change:
            self._change.wait_for(lambda: self._accepted - self._done < LIMIT)
            letters = []
            for start in range(0, len(points), FULL):
                some = points[start : start + FULL]
                letter = self._open.get(run)
                if letter is None or len(letter.points) + len(some) > FULL:
                    if letter:
                        self._full.append(letter)
                    letter = self._open[run] = Letter(run)
                letter.points.extend(some)
                letters.append(letter)
            if self._accepted == self._done or self._full:
                self._change.notify_all()
            self._accepted += len(points)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mlstack-metric-queue", daemon=True)
                self._thread.start()
        return [letter.stored for letter in letters]

    @property
    def waiting(self) -> int:
        """How many points are not stored yet."""
        return self._accepted - self._done

    def flush(self) -> None:
        """Returns when everything that was put in before is stored or given up."""
        if threading.current_thread() is self._thread:  # sending asks the server for more than to store
            return
        with self._change:
            goal = self._wanted = self._accepted
            self._change.notify_all()
            self._change.wait_for(lambda: self._done >= goal)

    def dropped(self) -> tuple[Counter[str], Exception | None]:
        """How many points of which runs were given up since this was last asked, and the last reason."""
        with self._change:
            found = self._dropped, self._reason
            self._dropped, self._reason = Counter(), None
        return found

    def _work(self) -> None:
        while True:
            for letter in self._due():
                self._deliver(letter)

    def _due(self) -> list[Letter]:
        """Full letters at once, others after the pause or when somebody waits for them."""
        with self._change:
            self._change.wait_for(lambda: self._open)
            self._change.wait_for(lambda: self._full or self._wanted > self._done, PAUSE)
            full, self._full = self._full, []
            if full and self._wanted <= self._done:
                return full
            letters, self._open = [*full, *self._open.values()], {}
            return letters

    def _deliver(self, letter: Letter) -> None:
        failure = None
        try:
            self._send(letter.run, letter.points)
        except Exception as error:  # noqa: BLE001  (it is told to whoever waits for it)
            failure = error
        if failure:
            log.error("%d points of run %s could not be stored: %s", len(letter.points), letter.run, failure)
            letter.stored.set_exception(failure)
        else:
            letter.stored.set_result(None)
        with self._change:  # last: whoever waits in flush() then finds every result
            self._done += len(letter.points)
            if failure:
                self._dropped[letter.run] += len(letter.points)
                self._reason = failure
            self._change.notify_all()
