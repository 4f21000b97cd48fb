"""Trying a service again until it answers."""

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed


def retrying(deadline: float, is_transient: Callable[[BaseException], bool]) -> Retrying:
    """Calls a function once a second until it returns or `deadline` seconds have passed; raises others at once."""
    return Retrying(retry=retry_if_exception(is_transient), stop=stop_after_delay(deadline), wait=wait_fixed(1), reraise=True)
