"""What is done to the stack while a client writes. Each fault ends by itself: nothing here mends a service."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.stack import Client, Stack

DATA_AND_TRACKING = ("postgres", "minio", "mlflow")


@dataclass(frozen=True)
class Fault:
    """A row of the matrix."""

    name: str
    inject: Callable[[Stack, Client], None]
    kills_client: bool = False

    def __str__(self) -> str:
        return self.name


def _of_services() -> Iterator[Fault]:
    for service in DATA_AND_TRACKING:
        yield Fault(f"{service}: kill -9", lambda stack, _, at=service: stack.kill(at))
        yield Fault(f"{service}: stopped for 30 s", lambda stack, _, at=service: stopped(stack, at, 30))
        yield Fault(f"{service}: restarted every 5 s for a minute", lambda stack, _, at=service: restarted(stack, at, 5, 60))
        yield Fault(f"{service}: paused for 20 s", lambda stack, _, at=service: paused(stack, at, 20))


def stopped(stack: Stack, service: str, seconds: float) -> None:
    container = stack.container(service)
    stack.docker("stop", container)
    time.sleep(seconds)
    stack.docker("start", container)


def restarted(stack: Stack, service: str, interval: float, seconds: float) -> None:
    container = stack.container(service)
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < seconds:
        stack.docker("restart", container)
        # A restart that takes longer than the interval is followed by the next at once.
        time.sleep(max(0.0, interval - (time.monotonic() - begun - passed)))


def paused(stack: Stack, service: str, seconds: float) -> None:
    container = stack.container(service)
    stack.docker("pause", container)
    time.sleep(seconds)
    stack.docker("unpause", container)


OF_SERVICES = tuple(_of_services())
