"""Says what a call waits for: MLflow's client is silent while it retries, for minutes where a server is unavailable."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import urlsplit

from urllib3.util import Retry

SILENT = 5.0  # seconds that a call may wait before it says so: most restarts of a request are shorter
AGAIN = 60.0  # seconds between two such lines of a process, whichever calls wait

log = logging.getLogger(__name__)
_lock = threading.Lock()
_last_told = -AGAIN


class TellingRetry(Retry):
    """urllib3's retries, which MLflow uses for every request, and one line in the log once they take longer than SILENT."""

    started: float | None = None
    """When the first attempt failed, on a clock that nobody sets."""
    what = ""

    def increment(self, method: str | None = None, url: str | None = None, *rest: Any, **named: Any) -> Self:
        following = super().increment(method, url, *rest, **named)
        following.started = self.started if self.started is not None else time.monotonic()
        pool, error, response = named.get("_pool"), named.get("error"), named.get("response")
        address = f"{pool.scheme}://{pool.host}:{pool.port}" if pool else urlsplit(url or "").netloc or "the server"
        following.what = f"{address} ({f'status {response.status}' if response else type(error).__name__})"
        return following

    def sleep(self, response: Any = None) -> None:
        started = self.started if self.started is not None else time.monotonic()
        pause = (response and self.respect_retry_after_header and self.get_retry_after(response)) or self.get_backoff_time()
        end = time.monotonic() + pause
        if started + SILENT <= end:
            time.sleep(max(0.0, started + SILENT - time.monotonic()))
            self._tell(end - time.monotonic())
        time.sleep(max(0.0, end - time.monotonic()))

    def _tell(self, pause: float) -> None:
        global _last_told  # noqa: PLW0603  (one line for all calls of the process)
        with _lock:
            if time.monotonic() < _last_told + AGAIN:
                return
            _last_told = time.monotonic()
        errors, left = len(self.history), int(self.total or 0)
        later = sum(min(self.backoff_max, self.backoff_factor * 2 ** (errors + number)) for number in range(left))
        until = datetime.now(UTC) + timedelta(seconds=pause + later)
        log.warning(
            "waiting for MLflow at %s: the call is repeated until it answers, at most for %d s (until %s UTC)."
            " Fix: make doctor on the host says why it does not answer.",
            self.what,
            pause + later,
            f"{until:%H:%M:%S}",
        )
