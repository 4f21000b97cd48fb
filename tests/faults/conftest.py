import re
from collections.abc import Iterator

import pytest

from tests.faults import report
from tests.faults.experiment import Row
from tests.faults.stack import Stack
from tests.support.clone import ROOT, Clone


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", action="store_true", help="write the tables of the docs from this run")


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """What the faults did, in their order. --report writes it at the end."""
    rows: list[Row] = []
    yield rows
    if request.config.getoption("--report"):
        report.write(ROOT / "docs/reliability.md", rows)


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Stack]:
    """The shipped stack, as `make up` starts it."""
    with clone.started():
        yield Stack(clone)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A folder name for the test's client."""
    return re.sub(r"\W+", "-", request.node.name).strip("-")[-80:].lower()
