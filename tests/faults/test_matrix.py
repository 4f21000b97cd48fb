"""Every fault, on the shipped stack with a client at work. Slow: `make test-faults`. REPORT=1 writes docs/reliability.md."""

from collections.abc import Iterator

import pytest

from tests.faults import experiment, faults, small
from tests.faults.engine import engine_for
from tests.faults.experiment import Result, Row
from tests.faults.faults import Fault
from tests.faults.stack import Stack
from tests.support.clone import Clone


@pytest.fixture(scope="class")
def small_stack(clone: Clone) -> Iterator[Stack]:
    """The same with disks that can be filled."""
    with small.started(clone) as stack:
        yield stack


@pytest.fixture(scope="module")
def contained_stack(clone: Clone) -> Iterator[Stack]:
    """The same on an engine of its own, which can be killed."""
    clone.erase()
    with engine_for(clone) as engine:
        stack = Stack(clone, engine)
        stack.compose("up", "--detach", "--wait", "--no-build")
        yield stack
        stack.compose("down", "--volumes", "--timeout", "10")


def check(result: Result) -> None:
    print(result.row)  # noqa: T201 # progress of a long run, with -s
    for verdict in result.verdicts:
        assert verdict.is_good, verdict
        assert verdict.points and verdict.artifacts and verdict.registry
    assert result.row.rate >= 1


@pytest.mark.parametrize("fault", (*faults.OF_SERVICES, faults.NETWORK), ids=str)
def test_fault_loses_no_acknowledged_write(stack: Stack, fault: Fault, rows: list[Row], name: str) -> None:
    result = experiment.run(stack, fault, name)
    rows.append(result.row)
    check(result)
    assert not result.ledgers[0].failed(), result.row.saw


def test_killed_kernel_loses_only_unanswered_calls(stack: Stack, rows: list[Row], name: str) -> None:
    result = experiment.run(stack, faults.KERNEL, name)
    rows.append(result.row)
    check(result)
    killed = result.verdicts[0]
    assert killed.unanswered > 0, "nothing was in flight: the test proves nothing"


def test_client_that_gives_up_raises(stack: Stack, rows: list[Row], name: str) -> None:
    result = experiment.run(stack, faults.GIVES_UP, name, MLFLOW_HTTP_REQUEST_MAX_RETRIES="2")
    rows.append(result.row)
    check(result)
    failed = result.ledgers[0].failed()
    assert {"sync", "async", "end"} <= {entry.kind for entry in failed}
    assert all("mlflow" in entry.answer and "5000" in entry.answer for entry in failed), failed
    dropped = sum(len(entry.items) for entry in failed if entry.kind == "async")
    message = next(entry.answer for entry in failed if entry.kind == "end")
    assert f"{dropped} of run {result.ledgers[0].run}" in message


class TestFullDisks:
    """A class, so that this stack is removed before the next starts."""

    @pytest.mark.parametrize("fault", faults.OF_DISKS, ids=str)
    def test_full_disk_loses_nothing_and_recovers(self, small_stack: Stack, fault: Fault, rows: list[Row], name: str) -> None:
        result = experiment.run(small_stack, fault, name, large=100)
        rows.append(result.row)
        check(result)


def test_killed_engine_loses_nothing_and_the_stack_restarts(contained_stack: Stack, rows: list[Row], name: str) -> None:
    result = experiment.run(contained_stack, faults.ENGINE, name)
    rows.append(result.row)
    check(result)
