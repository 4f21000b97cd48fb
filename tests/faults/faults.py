"""What is done to the stack while a client writes. Each fault ends by itself: nothing here repairs a service."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults import engine
from tests.faults.stack import Client, Stack

KILLED_SERVICES = ("postgres", "minio", "mlflow")


@dataclass(frozen=True)
class Fault:
    """A row of the matrix."""

    name: str
    inject: Callable[[Stack, Client], None]
    kills_client: bool = False

    def __str__(self) -> str:
        return self.name


def _of_services() -> Iterator[Fault]:
    for service in KILLED_SERVICES:
        yield Fault(f"{service}: kill -9", lambda stack, _, service=service: stack.kill(service))
        yield Fault(f"{service}: stopped for 30 s", lambda stack, _, service=service: stopped(stack, service, 30))
        yield Fault(
            f"{service}: restarted every 5 s for a minute", lambda stack, _, service=service: restarted(stack, service, 5, 60)
        )
        yield Fault(f"{service}: paused for 20 s", lambda stack, _, service=service: paused(stack, service, 20))


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


def cut(stack: Stack, seconds: float) -> None:
    """Jupyter leaves the network that it shares with MLflow: no name, no route, open connections hang."""
    network, container = f"{stack.clone.name}_work-internal", stack.container("jupyter")
    stack.docker("network", "disconnect", network, container)
    time.sleep(seconds)
    stack.docker("network", "connect", "--alias", "jupyter", network, container)


def killed(stack: Stack, client: Client) -> None:
    """Kills the client while MLflow is paused, so that calls are certainly in flight."""
    container = stack.container("mlflow")
    stack.docker("pause", container)
    time.sleep(2)
    client.kill()
    stack.docker("unpause", container)


NETWORK = Fault("network between Jupyter and MLflow cut for 20 s", lambda stack, _: cut(stack, 20))
KERNEL = Fault("notebook kernel killed (-9) while it logs asynchronously", killed, kills_client=True)


@dataclass(frozen=True)
class Filled:
    """Fills a small volume in memory for a while."""

    volume: str

    def __call__(self, stack: Stack, _: Client) -> None:
        stack.docker("exec", holder(stack, self.volume), "bash", "-c", FILL)


FULL_SECONDS = 20
# Space that a service frees meanwhile is filled too; at the end there is room again.
FILL = (
    f"timeout {FULL_SECONDS} bash -c 'while :; do cat /dev/zero >>/held/filler; sleep 0.1; done' 2>/dev/null;"
    " test -s /held/filler && rm /held/filler"
)


def holder(stack: Stack, volume: str) -> str:
    """The name of the container that keeps a volume in memory alive while no service mounts it."""
    return f"{stack.clone.name}-holder-{volume}"


MINIO_FULL = Fault(f"disk of MinIO full for {FULL_SECONDS} s", Filled("minio"))
POSTGRES_FULL = Fault(f"disk of Postgres full for {FULL_SECONDS} s", Filled("postgres"))
SPOOL_FULL = Fault(f"MLflow's temporary folder full for {FULL_SECONDS} s", Filled("spool"))
OF_DISKS = (MINIO_FULL, POSTGRES_FULL, SPOOL_FULL)


ENGINE = Fault("Docker engine killed (-9) and started again", lambda stack, _: engine.restart(stack.engine), kills_client=True)
GIVES_UP = Fault("mlflow: stopped for 30 s, a client that tries only twice", lambda stack, _: stopped(stack, "mlflow", 30))

MATRIX = (*OF_SERVICES, NETWORK, KERNEL, GIVES_UP, *OF_DISKS, ENGINE)
