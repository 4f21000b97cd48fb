"""What log_metric puts into the metric queue of a process, and when it is sent."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from mlstack.client import metric_queue, process_end
from mlstack.client.errors import ClientError
from mlstack.client.metric_queue import FULL, LIMIT, MetricQueue, RejectedError, Sent


class Server:
    """Accepts batches while it is open."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.open = threading.Event()
        self.open.set()
        self.called = threading.Event()
        self.failure: Exception | None = None
        self.rejected: set[int] = set()  # steps

    def take(self, run: str, points: Sequence[Metric]) -> None:
        self.called.set()
        assert self.open.wait(180)
        steps = [point.step for point in points]
        if self.rejected & {*steps}:
            raise RejectedError("no such step")
        self.batches.append((run, steps))
        if self.failure:
            raise self.failure


def points(count: int, first: int = 0) -> list[Metric]:
    return [Metric("loss", 0.5, 1, step) for step in range(first, first + count)]


def put(queue: MetricQueue, run: str, points: Sequence[Metric]) -> list[Sent]:
    sent = queue.put(run, points)
    assert sent is not None
    return sent


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def queue(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricQueue]:
    """It has just sent a batch, so that it sends no other by time alone."""
    monkeypatch.setattr(metric_queue, "PAUSE", 3600)
    queue = MetricQueue(server.take)
    put(queue, "first", points(1))[0].result(180)
    server.batches.clear()
    server.called.clear()
    yield queue
    server.open.set()


def test_queue_sends_many_calls_as_one_batch_for_each_run(server: Server, queue: MetricQueue) -> None:
    for step in range(100):
        put(queue, "a", points(1, step))
        put(queue, "b", points(1, step))
    assert queue.waiting == 200
    queue.flush()
    assert sorted(server.batches) == [("a", list(range(100))), ("b", list(range(100)))]
    assert queue.waiting == 0


def test_queue_sends_full_batch_at_once_and_rest_later(server: Server, queue: MetricQueue) -> None:
    sent = put(queue, "a", points(2 * FULL + 1))
    sent[0].result(180)
    sent[1].result(180)
    assert server.batches == [("a", list(range(FULL))), ("a", list(range(FULL, 2 * FULL)))]
    assert not sent[2].done()
    assert queue.waiting == 1


def test_queue_sends_first_point_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_queue, "PAUSE", 3600)
    put(MetricQueue(server.take), "a", points(1))[0].result(180)
    assert server.batches == [("a", [0])]


def test_queue_sends_later_points_after_pause(server: Server, queue: MetricQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_queue, "PAUSE", 0.01)
    put(queue, "a", points(1))[0].result(180)
    assert server.batches == [("a", [0])]


def test_failed_batch_fails_every_call_in_it_and_no_other(server: Server, queue: MetricQueue) -> None:
    server.failure = ConnectionError("gone")
    first, second = put(queue, "a", points(2)), put(queue, "a", points(3, 2))
    queue.flush()
    for sent in (*first, *second):
        with pytest.raises(ConnectionError, match="gone"):
            sent.result(0)
    server.failure = None
    third = put(queue, "a", points(1))
    queue.flush()
    assert third[0].result(0) is None  # type: ignore[func-returns-value]


def test_losses_are_reported_once_and_by_run(server: Server, queue: MetricQueue) -> None:
    server.failure = ConnectionError("gone")
    for run, count in (("a", 5), ("b", 2)):
        put(queue, run, points(count))
        queue.flush()
    assert {run: loss.count for run, loss in queue.losses("a").items()} == {"a": 5}
    assert {run: (loss.count, str(loss.reason)) for run, loss in queue.losses().items()} == {"b": (2, "gone")}
    assert not queue.losses() and not queue.losses("a")


def test_rejected_batch_is_sent_point_by_point(server: Server, queue: MetricQueue) -> None:
    server.rejected = {3}
    good, bad, also_good = put(queue, "a", points(3)), put(queue, "a", points(1, 3)), put(queue, "a", points(2, 4))
    queue.flush()
    assert [step for _, steps in server.batches for step in steps] == [0, 1, 2, 4, 5]
    good[0].result(0)
    also_good[0].result(0)
    with pytest.raises(RejectedError, match="no such step"):
        bad[0].result(0)
    assert queue.losses()["a"].count == 1


def test_put_waits_when_too_many_points_wait(server: Server, queue: MetricQueue) -> None:
    server.open.clear()
    put(queue, "a", points(LIMIT))
    more = threading.Thread(target=lambda: put(queue, "a", points(1, LIMIT)))
    more.start()
    more.join(0.2)
    assert more.is_alive() and queue.waiting == LIMIT
    server.open.set()
    more.join(180)
    queue.flush()
    assert sum(len(steps) for _, steps in server.batches) == LIMIT + 1


def test_send_may_flush_without_waiting_for_itself() -> None:
    taken: list[int] = []

    def send(_: str, points: Sequence[Metric]) -> None:
        queue.flush()
        taken.append(len(points))

    queue = MetricQueue(send)
    put(queue, "a", points(3))
    queue.flush()
    assert taken == [3]


def test_closed_queue_takes_no_point(server: Server, queue: MetricQueue) -> None:
    put(queue, "a", points(2))
    queue.close()
    assert server.batches == [("a", [0, 1])]
    assert queue.put("a", points(1)) is None


def test_forked_child_sends_its_own_points_and_not_those_of_its_parent(server: Server, queue: MetricQueue) -> None:
    put(queue, "a", points(5))
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        put(queue, "b", points(2))
        process_end._finish()
        os.write(writable, repr(server.batches).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 1000).decode() == "[('b', [0, 1])]"
    queue.flush()
    assert server.batches == [("a", list(range(5)))]


def test_fork_waits_for_request_in_flight(server: Server, queue: MetricQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the request holds locked (an import) would stay locked in the child."""
    monkeypatch.setattr(metric_queue, "FORK_WAIT", 180)
    server.open.clear()
    put(queue, "a", points(FULL + 1))
    assert server.called.wait(180)
    threading.Timer(0.3, server.open.set).start()
    child = os.fork()
    if not child:
        os._exit(0 if server.batches else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_fork_does_not_wait_for_server_that_is_unavailable(
    server: Server, queue: MetricQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metric_queue, "FORK_WAIT", 0.01)
    server.open.clear()
    put(queue, "a", points(FULL + 1))
    assert server.called.wait(180)
    child = os.fork()
    if not child:
        os._exit(len(server.batches))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    server.open.set()
    queue.flush()
    assert sum(len(steps) for _, steps in server.batches) == FULL + 1


# ---- the end of a process ------------------------------------------------------------------------

# Without the package's own module, which imports MLflow: that takes seconds, and process_end uses the standard library alone.
IMPORT = f"""
import ctypes, os, signal, sys, threading, types
package = sys.modules["mlstack.client"] = types.ModuleType("mlstack.client")
package.__path__ = [{str(Path(process_end.__file__).parent)!r}]
from mlstack.client import process_end
"""
PROGRAM = f"""{IMPORT}
process_end.call(lambda: os.write(1, b"finished"))
assert process_end.is_covered()
"""
TO_THREAD = "lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)"


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("1 / 0", 1),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGHUP)", -signal.SIGHUP),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.kill(os.getpid(), signal.SIGTERM)", 5),
        ("threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM)).start(); signal.pause()", -signal.SIGTERM),
        # No call of the main thread is interrupted, as when the signal arrives just before the call.
        (f"threading.Timer(1, {TO_THREAD}).start(); signal.pause()", -signal.SIGTERM),
        (f"import asyncio; threading.Timer(1, {TO_THREAD}).start(); asyncio.run(asyncio.sleep(60))", -signal.SIGTERM),
    ],
)
def test_process_end_calls_what_is_registered(end: str, code: int) -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n" + PROGRAM + end  # nohup ignores it for its children
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (process.stdout, process.returncode) == (b"finished", code), process.stderr.decode()


def test_process_end_leaves_ignored_signal_ignored() -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PROGRAM
    ended = program + "os.kill(os.getpid(), signal.SIGHUP); print('continues', flush=True)"
    assert subprocess.check_output([sys.executable, "-c", ended]) == b"continues\nfinished"


def test_child_that_registered_nothing_is_ended_by_the_signal_at_once() -> None:
    ended = PROGRAM + (
        "child = os.fork()\nif not child: signal.pause()\nos.kill(child, signal.SIGTERM)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM"
    )
    assert subprocess.check_output([sys.executable, "-c", ended]) == b"finished"  # by the parent alone


def test_process_end_is_not_covered_where_c_code_handles_sigterm() -> None:
    """PyTorch's data loader does this in its workers."""
    child = os.fork()
    if not child:
        assert process_end.is_covered()
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: None)
        ctypes.CDLL(None).signal(signal.SIGTERM, handler)
        os._exit(1 if process_end.is_covered() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_process_end_is_not_covered_in_thread_before_main_thread_asked() -> None:
    program = (
        f"{IMPORT}found = []\n"
        "def ask(): found.append(process_end.is_covered())\n"
        "thread = threading.Thread(target=ask); thread.start(); thread.join(); ask()\n"
        "thread = threading.Thread(target=ask); thread.start(); thread.join(); print(found)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[False, True, True]\n"


# ---- its error -----------------------------------------------------------------------------------


def test_client_error_is_one_of_mlflow_and_passes_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ClientError("wrong", "why", "fix")))  # noqa: S301
    assert isinstance(error, MlflowException)
    assert (str(error), error.error_code) == ("wrong\nwhy\nFix: fix", "INTERNAL_ERROR")
