"""Every fault while a search of the part `ray` runs: `make test-faults PART=ray` (REPORT=1: docs/scale.md)."""

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from tests.faults import ray, report
from tests.faults.ray import HEAD, TRIALS, Fault, Row
from tests.faults.stack import SERVICES, Stack
from tests.support.clone import Clone


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Stack]:
    clone.set(COMPOSE_PROFILES="ray", RAY_WORKERS=str(ray.WORKERS))
    with clone.started():
        yield Stack(clone, services=(*SERVICES, HEAD, "ray-worker"))
    clone.set(COMPOSE_PROFILES="")


@pytest.fixture
def client(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, stack.clone.values[name])
    return MlflowClient(stack.clone.values["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module")
def searched(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    order = [fault.name for fault in ray.MATRIX]
    with report.collected(request.config, "docs/scale.md", ray.TITLES, order) as rows:
        yield rows


@pytest.mark.parametrize("fault", ray.MATRIX, ids=str)
def test_fault_leaves_no_trial_running_and_the_same_call_completes_the_search(
    stack: Stack, client: MlflowClient, fault: Fault, searched: list[Row], name: str
) -> None:
    row = ray.run(stack, client, fault, name)
    searched.append(row)
    print(row)  # noqa: T201 # shown if it fails
    assert row.is_lost == (fault.service == HEAD)
    assert set(row.first) == {"KILLED" if row.is_lost else "FINISHED"}
    assert row.last == ("FINISHED",) * TRIALS + (("KILLED",) * len(row.first) if row.is_lost else ())
    assert row.complete == TRIALS
