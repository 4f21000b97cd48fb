"""What log_metric puts into the outbox of a process, and when it leaves."""

import os
import threading
from collections.abc import Sequence

import pytest
from mlflow.entities import Metric

from mlstack.client import metric_queue
from mlstack.client.metric_queue import FULL, LIMIT, MetricQueue


class Server:
    """Takes letters, when it is let."""

    def __init__(self) -> None:
        self.letters: list[tuple[str, list[int]]] = []
        self.open = threading.Event()
        self.open.set()
        self.failure: Exception | None = None

    def take(self, run: str, points: Sequence[Metric]) -> None:
        assert self.open.wait(10)
        self.letters.append((run, [point.step for point in points]))
        if self.failure:
            raise self.failure


def points(count: int, first: int = 0) -> list[Metric]:
    return [Metric("loss", 0.5, 1, step) for step in range(first, first + count)]


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def box(server: Server) -> MetricQueue:
    return MetricQueue(server.take)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves because time passes."""
    monkeypatch.setattr(metric_queue, "PAUSE", 3600)


@pytest.mark.usefixtures("never")
def test_many_calls_are_one_letter_for_each_run(server: Server, box: MetricQueue) -> None:
    for step in range(100):
        box.put("a", points(1, step))
        box.put("b", points(1, step))
    assert box.waiting == 200
    box.flush()
    assert sorted(server.letters) == [("a", list(range(100))), ("b", list(range(100)))]
    assert box.waiting == 0


@pytest.mark.usefixtures("never")
def test_a_full_letter_leaves_at_once_and_the_rest_waits(server: Server, box: MetricQueue) -> None:
    stored = box.put("a", points(2 * FULL + 1))
    stored[0].result(10)
    stored[1].result(10)
    assert server.letters == [("a", list(range(FULL))), ("a", list(range(FULL, 2 * FULL)))]
    assert not stored[2].done()
    assert box.waiting == 1


def test_a_lonely_point_leaves_by_itself(server: Server, box: MetricQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_queue, "PAUSE", 0.01)
    box.put("a", points(1))[0].result(10)
    assert server.letters == [("a", [0])]


@pytest.mark.usefixtures("never")
def test_a_letter_that_fails_fails_every_call_in_it_and_no_other(server: Server, box: MetricQueue) -> None:
    server.failure = ConnectionError("gone")
    first, second = box.put("a", points(2)), box.put("a", points(3, 2))
    box.flush()
    for stored in (*first, *second):
        with pytest.raises(ConnectionError, match="gone"):
            stored.result(0)
    server.failure = None
    third = box.put("a", points(1))
    box.flush()
    assert third[0].result(0) is None
    dropped, reason = box.dropped()
    assert (dict(dropped), str(reason)) == ({"a": 5}, "gone")
    assert not box.dropped()[0]  # told once


def test_logging_waits_when_too_much_is_on_its_way(server: Server, box: MetricQueue) -> None:
    server.open.clear()
    box.put("a", points(LIMIT))
    more = threading.Thread(target=lambda: box.put("a", points(1, LIMIT)))
    more.start()
    more.join(0.2)
    assert more.is_alive() and box.waiting == LIMIT
    server.open.set()
    more.join(10)
    box.flush()
    assert sum(len(steps) for _, steps in server.letters) == LIMIT + 1


@pytest.mark.usefixtures("never")
def test_sending_may_flush_without_waiting_for_itself() -> None:
    taken: list[int] = []

    def send(_: str, found: Sequence[Metric]) -> None:
        box.flush()
        taken.append(len(found))

    box = MetricQueue(send)
    box.put("a", points(3))
    box.flush()
    assert taken == [3]


@pytest.mark.usefixtures("never")
def test_a_forked_process_sends_its_own_points_and_not_those_of_its_parent(server: Server, box: MetricQueue) -> None:
    server.open.clear()
    box.put("a", points(5))
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        server.open.set()
        box.put("b", points(2))
        box.flush()
        os.write(writable, repr(server.letters).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(readable, 1000).decode() == "[('b', [0, 1])]"
    server.open.set()
    box.flush()
    assert server.letters == [("a", list(range(5)))]
