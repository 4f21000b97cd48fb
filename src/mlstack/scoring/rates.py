"""How often each client may ask."""

import time
from collections.abc import Callable

ROUNDING = 1e-6  # seconds


class Rates:
    """At most `rate` requests in a second from each client, on average and at once; 0 for no limit."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._free_at: dict[str, float] = {}
        """When what each client has asked for would be answered at its rate. Only clients that have a key are in it."""

    def admits(self, client: str) -> bool:
        """Whether this request is within the client's rate, which counts it."""
        if not self._rate:
            return True
        now = self._clock()
        free_at = max(self._free_at.get(client, now), now) + 1 / self._rate
        if free_at > now + 1 + ROUNDING:
            return False
        self._free_at[client] = free_at
        return True
