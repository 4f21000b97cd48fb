"""Trying a service again until it answers."""

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential


def retrying(deadline: float, is_transient: Callable[[BaseException], bool]) -> Retrying:
    """Calls a function until it returns or `deadline` seconds have passed, 0.1 s to 1 s apart; raises other errors at once."""
    return Retrying(
        retry=retry_if_exception(is_transient), stop=stop_after_delay(deadline), wait=wait_exponential(0.1, max=1), reraise=True
    )
