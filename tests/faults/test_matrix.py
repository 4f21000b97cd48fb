"""Every fault, on the shipped stack with a client at work. Slow: `make test-faults`. REPORT=1 writes docs/reliability.md."""

from collections.abc import Iterator

import pytest

from tests.faults import experiment, faults
from tests.faults.engine import engine_for
from tests.faults.experiment import Result, Row
from tests.faults.faults import Fault
from tests.faults.stack import Stack
from tests.support.clone import Clone

# Small volumes in memory, half of which the data of the faults fill. Docker counts their content as memory of the service that
# wrote it.
SMALL = """
services:
  postgres: { mem_limit: 2g, memswap_limit: 2g }
  minio: { mem_limit: 7g, memswap_limit: 7g }
  mlflow: { mem_limit: 3g, memswap_limit: 3g }
volumes:
  postgres: { driver_opts: { type: tmpfs, device: tmpfs, o: "size=1536m,uid=999,gid=999,mode=1777" } }
  minio: { driver_opts: { type: tmpfs, device: tmpfs, o: "size=5g,uid=60710,gid=60710" } }
  spool: { driver_opts: { type: tmpfs, device: tmpfs, o: "size=256m,uid=60711,gid=60711,mode=1777" } }
"""


@pytest.fixture(scope="class")
def small_stack(clone: Clone) -> Iterator[Stack]:
    """The same with disks that can be filled. It replaces the other stack: they share a name and ports."""
    override = clone.folder / "docker-compose.override.yml"
    clone.erase()
    override.write_text(SMALL)
    stack = Stack(clone)
    filled = [fault.inject.volume for fault in faults.OF_DISKS]
    try:
        done = clone.make("up")
        assert done.returncode == 0, done.stdout + done.stderr
        for volume in filled:
            stack.docker(
                "run", "--detach", "--init", "--name", faults.holder(stack, volume), "--user", "0", "--network", "none",
                "--volume", f"{clone.name}_{volume}:/held", "--entrypoint", "sleep", clone.image("postgres"), "infinity",
            )  # fmt: skip
        yield stack
    finally:
        for volume in filled:
            stack.docker("rm", "--force", faults.holder(stack, volume))
        clone.erase()
        override.unlink()


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
