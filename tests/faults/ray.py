"""A search on the part `ray` while a fault is injected, and the same call again."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from mlflow import MlflowClient

from tests.faults import faults
from tests.faults.stack import PATIENCE, Stack
from tests.support import searches
from tests.support.searches import Search
from tests.support.service import wait_until

WORKERS = 2
TRIALS = 4
HEAD = "ray-head"


@dataclass(frozen=True)
class Fault:
    """A row of the matrix."""

    service: str
    action: str
    inject: Callable[[Stack, str], None]

    @property
    def name(self) -> str:
        return f"{self.service}: {self.action}"

    @property
    def is_of_ray(self) -> bool:
        return self.service.startswith("ray-")

    def __str__(self) -> str:
        return self.name


KILL = "kill -9"
STOP = "stopped for 30 s"
MATRIX = (
    *(
        Fault(service, KILL, lambda stack, service: stack.kill(service))
        for service in (*faults.KILLED_SERVICES, HEAD, "ray-worker")
    ),
    *(
        Fault(service, STOP, lambda stack, service: faults.stopped(stack, service, 30))
        for service in (*faults.KILLED_SERVICES, HEAD, "ray-worker")
    ),
    *(
        Fault(service, "restarted every 5 s for 30 s", lambda stack, service: faults.restarted(stack, service, 5, 30))
        for service in ("mlflow", "ray-worker")
    ),
)


@dataclass(frozen=True)
class Row:
    """What a fault did, as the report shows it."""

    fault: str
    is_lost: bool  # the call failed, and said that Ray was lost
    first: tuple[str, ...]  # statuses of the trials after the call
    last: tuple[str, ...]  # the same after the repeated call
    complete: int  # trials with their result and one model, after the repeated call
    recovery: float  # seconds from the fault's end until every service is healthy and all workers have joined

    @property
    def cells(self) -> tuple[str, ...]:
        first = "fails: Ray was lost" if self.is_lost else "succeeds"
        counts = (self.first.count("FINISHED"), self.first.count("KILLED"), self.first.count("RUNNING"), self.complete)
        return (self.fault, first, *map(str, (*counts, len(self.last), self.recovery)))


TITLES = (
    "fault", "the call", "trials FINISHED", "KILLED", "RUNNING", "complete after the same call again",
    "runs of trials", "recovery, s",
)  # fmt: skip


def run(stack: Stack, client: MlflowClient, fault: Fault, name: str) -> Row:
    """Injects a fault while trials run. Raises TimeoutError when the stack does not come back by itself."""
    search = Search(client, name)
    searches.close_gate(client)
    with searches.started(stack.clone, name, TRIALS) as running:
        wait_until(lambda: search.begun == WORKERS, PATIENCE)
        if not fault.is_of_ray:  # trials end and begin meanwhile, and write
            searches.open_gate(client)
        fault.inject(stack, fault.service)
        ended = time.monotonic()
        wait_until(lambda: stack.is_healthy and searches.has_workers(stack.clone, WORKERS), PATIENCE, 0.5)
        recovery = time.monotonic() - ended
        searches.open_gate(client)
        printed, _ = running.communicate(timeout=PATIENCE)
    is_lost = "mlstack.errors.MlstackError: Ray was lost" in printed
    assert is_lost or f"ended {TRIALS}" in printed, printed
    first = search.statuses
    with searches.started(stack.clone, name, TRIALS) as running:
        printed, _ = running.communicate(timeout=PATIENCE)
    assert f"ended {TRIALS}" in printed, printed
    complete = sum(map(search.is_complete, search.trials))
    return Row(fault.name, is_lost, tuple(first), tuple(search.statuses), complete, round(recovery, 1))
