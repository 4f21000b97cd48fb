"""Every fault while clients of the part `scoring` are answered: `make test-faults PART=scoring` (REPORT=1: docs/scoring.md)."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults import report, scoring, small
from tests.faults.scoring import Fault, Row
from tests.faults.stack import SERVICES, Stack
from tests.support.clone import Clone
from tests.support.scoring import Scoring, with_key


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Stack]:
    with small.started(clone) as stack:
        added = clone.make("add", PART="scoring")
        assert added.returncode == 0, added.stderr
        yield replace(stack, services=(*SERVICES, "scoring"))
        clone.make("remove", PART="scoring").check_returncode()


@pytest.fixture(scope="module")
def served(stack: Stack) -> Scoring:
    return with_key(stack.clone, "good", "leak")


@pytest.fixture(scope="module")
def scored(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    order = [fault.name for fault in scoring.MATRIX]
    with report.collected(request.config, "docs/scoring.md", scoring.HEAD, order) as rows:
        yield rows


@pytest.mark.parametrize("fault", scoring.MATRIX, ids=str)
def test_fault_causes_no_wrong_answer_and_loses_no_decision(
    stack: Stack, served: Scoring, fault: Fault, scored: list[Row], name: str
) -> None:
    row = scoring.run(stack, served, fault, name)
    scored.append(row)
    print(row)  # noqa: T201 # shown if it fails
    assert row.failed.keys() <= fault.excused
    assert (row.wrong, row.lost, row.doubled) == (0, 0, 0)
