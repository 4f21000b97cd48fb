import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import report
from tests.conformance.comparison import Comparison, Place
from tests.conformance.servers import Pair, genuine_beside, get, post
from tests.support.clone import Clone

SEED = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=SEED, help="of the odd calls; another one finds more")
    parser.addoption("--conformance-page", type=Path, default=None, help="the page whose generated block is written")


def pytest_report_header(config: pytest.Config) -> str:
    return f"conformance: --seed {config.getoption('seed')}"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """For each test the same with the same seed, whichever other tests run."""
    return random.Random(f"{request.config.getoption('seed')} {request.node.name}")  # noqa: S311 (not for secrets)


@pytest.fixture(scope="session")
def pair(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The shipped stack with genuine MLflow beside it, and the same accounts on both."""
    done = clone.make("up")
    assert done.returncode == 0, done.stdout + done.stderr
    with genuine_beside(clone, tmp_path_factory.mktemp("genuine")) as pair:
        for name in ("owner", "colleague", "reader", "denied", "removed"):
            pair.account(name)
        yield pair


@pytest.fixture(scope="session")
def comparison(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Comparison]:
    """Both servers with what odd calls refer to; at the end its counts go to the page."""
    experiment, searched = (
        pair.expect(post("experiments/create", {"name": name}))["experiment_id"] for name in ("fuzz", "searched")
    )
    pair.expect(post("registered-models/create", {"name": "model"}))
    for number, run in enumerate(sorted(pair.runs(5, searched))):
        metrics = [{"key": "m", "value": number, "timestamp": 1, "step": 0}]
        pair.expect(post("runs/log-batch", {"run_id": run, "metrics": metrics, "tags": [{"key": "a", "value": "b"}]}))
    for _ in range(20):  # our server caches logins, in each of its workers
        pair.send(get("experiments/get?experiment_id=0"))
    comparison = Comparison(pair, Place(experiment, searched, "model"))
    yield comparison
    if page := request.config.getoption("--conformance-page"):
        report.write(page, request.config.getoption("--seed"), comparison.answers, comparison.runs)
