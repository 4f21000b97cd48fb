"""Clients of the scoring service while a fault is injected, and the comparison of their answers with the decision log."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product

import requests

from mlstack.host import stack as host
from mlstack.postgres import connected
from tests.faults import faults
from tests.faults.stack import PATIENCE, Stack
from tests.support.clone import Clone
from tests.support.scoring import GOOD_ROW, JSON, Scoring
from tests.support.service import wait_until

CLIENTS = 4
PAUSE = 0.02  # seconds between two requests of a client
AGAIN = 20  # answers after which the service is back
LEAKING = "2"  # the version whose model leaks
MALFORMED = 10_000
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Fault:
    """A row of the matrix. `excused` are the outcomes other than 200 that it may cause."""

    name: str
    inject: Callable[[Stack, Scoring], None]
    excused: frozenset[str]

    def __str__(self) -> str:
        return self.name


def _of_services() -> Iterator[Fault]:
    actions: dict[str, Callable[[Stack, str], None]] = {
        "kill -9": lambda stack, service: stack.kill(service),
        "stopped for 30 s": lambda stack, service: faults.stopped(stack, service, 30),
        "restarted every 5 s for a minute": lambda stack, service: faults.restarted(stack, service, 5, 60),
    }
    excused = {"postgres": {"503"}, "minio": set(), "mlflow": set(), "scoring": {"503", NO_ANSWER}}
    for service, (action, inject) in product(excused, actions.items()):
        yield Fault(
            f"{service}: {action}",
            lambda stack, _, service=service, inject=inject: inject(stack, service),  # type: ignore[misc]
            frozenset(excused[service]),
        )


def _leak(stack: Stack, scoring: Scoring) -> None:
    """The champion leaks until the service is out of memory and starts again; then another version is the champion."""
    before = _restarts(stack)
    scoring.set_alias(LEAKING)
    wait_until(lambda: _restarts(stack) > before, PATIENCE)
    scoring.set_alias("1")
    wait_until(lambda: _serves_only_the_first(scoring), PATIENCE)


def _restarts(stack: Stack) -> int:
    return int(stack.docker("inspect", "--format", "{{.RestartCount}}", stack.container("scoring")))


def _serves_only_the_first(scoring: Scoring) -> bool:
    try:
        return scoring.served() == ["1"]
    except requests.RequestException:  # it starts again
        return False


def _malformed(_: Stack, scoring: Scoring) -> None:
    bodies = ("{", '{"dataframe_records": 1}', json.dumps({"dataframe_records": [{**GOOD_ROW, "count": "4"}]}), "[" * 5000)
    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = Counter(threads.map(lambda n: scoring.post("/invocations", bodies[n % 4]).status_code, range(MALFORMED)))
    assert answers.keys() == {400, 422}, answers


MATRIX = (
    *_of_services(),
    Fault("mlflow: paused for 20 s", lambda stack, _: faults.paused(stack, "mlflow", 20), frozenset()),
    Fault(f"disk of Postgres full for {faults.FULL_SECONDS} s", faults.POSTGRES_FULL.inject, frozenset({"503"})),  # type: ignore[arg-type]
    Fault("a champion that leaks memory", _leak, frozenset({"503", NO_ANSWER})),
    Fault(f"{MALFORMED:,} malformed requests", _malformed, frozenset()),
)


@dataclass(frozen=True)
class Answer:
    """A row that was scored, as the client got it."""

    decision: str
    score: float
    is_right: bool
    begun: float
    seconds: float


@dataclass
class Clients:
    """Clients that score single rows until they are stopped. An entity names them in the log."""

    scoring: Scoring
    entity: str
    answers: list[Answer] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    last_failure: dict[str, str] = field(default_factory=dict)  # by outcome
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        url = f"{self.scoring.url}/invocations"  # once: a test may be writing .env
        with requests.Session() as session:
            session.headers.update({**self.scoring.login, **JSON, "X-Mlstack-Entity": self.entity})
            while not self.stopped.wait(PAUSE):
                self._ask(session, url, random.randint(0, 1_000_000))  # noqa: S311

    def _ask(self, session: requests.Session, url: str, x: float) -> None:
        begun = time.monotonic()
        try:
            answer = session.post(url, json.dumps({"dataframe_records": [{**GOOD_ROW, "x": x}]}), timeout=60)
        except requests.RequestException:
            self.failed[NO_ANSWER] += 1
            return
        if answer.status_code != 200 and "error_code" not in answer.text:
            self.failed[NO_ANSWER] += 1  # of a proxy that answers for a container that is down
            return
        if answer.status_code != 200:
            self.failed[str(answer.status_code)] += 1
            self.last_failure[str(answer.status_code)] = f"{answer.headers} {answer.text}"
            return
        (score,) = answer.json()["predictions"]
        is_right = score == x * float(answer.headers["X-Mlstack-Version"])
        self.answers.append(Answer(answer.headers["X-Mlstack-Decision"], score, is_right, begun, time.monotonic() - begun))

    def answered_since(self, begun: float) -> int:
        return sum(answer.begun >= begun for answer in self.answers)


@contextmanager
def working(scoring: Scoring, entity: str) -> Iterator[Clients]:
    clients = Clients(scoring, entity)
    with ThreadPoolExecutor(CLIENTS) as threads:
        running = [threads.submit(clients.run) for _ in range(CLIENTS)]
        try:
            yield clients
        finally:
            clients.stopped.set()
    for client in running:
        client.result()


@dataclass(frozen=True)
class Row:
    """What a fault did, as the report shows it."""

    fault: str
    answered: int
    failed: Counter[str]  # requests without an answer of 200, by status
    wrong: int
    lost: int  # answers whose row is not in the log
    doubled: int  # answers that have more than one row, or another score there
    unanswered: int  # rows in the log whose answer did not arrive
    slowest: float  # seconds
    recovery: float  # seconds from the fault's end until requests are answered again and every service is healthy

    @property
    def cells(self) -> tuple[str, ...]:
        failed = ", ".join(f"{count}: {outcome}" for outcome, count in sorted(self.failed.items())) or "none"
        numbers = (self.answered, failed, self.wrong, self.lost, self.doubled, self.unanswered, self.slowest, self.recovery)
        return (self.fault, *map(str, numbers))


HEAD = (
    "fault", "answers", "other outcomes", "wrong", "not in the log", "twice or differently in the log",
    "in the log, answer not received", "slowest answer, s", "recovery, s",
)  # fmt: skip


def run(stack: Stack, scoring: Scoring, fault: Fault, entity: str) -> Row:
    """Injects a fault while clients score. Raises TimeoutError when the service does not come back by itself."""
    with working(scoring, entity) as clients:
        wait_until(lambda: len(clients.answers) >= AGAIN)
        fault.inject(stack, scoring)
        ended = time.monotonic()
        wait_until(lambda: clients.answered_since(ended) >= AGAIN, PATIENCE)
        wait_until(lambda: stack.is_healthy, PATIENCE, 0.5)
        recovery = time.monotonic() - ended
    unexpected = {outcome: text for outcome, text in clients.last_failure.items() if outcome not in fault.excused}
    assert not unexpected, unexpected
    in_log = logged(stack.clone, entity)
    return Row(
        fault=fault.name,
        answered=len(clients.answers),
        failed=clients.failed,
        wrong=sum(not answer.is_right for answer in clients.answers),
        lost=sum(answer.decision not in in_log for answer in clients.answers),
        doubled=sum(in_log.get(answer.decision, [answer.score]) != [answer.score] for answer in clients.answers),
        unanswered=len(in_log.keys() - {answer.decision for answer in clients.answers}),
        slowest=round(max(answer.seconds for answer in clients.answers), 1),
        recovery=round(recovery, 1),
    )


def logged(clone: Clone, entity: str) -> dict[str, list[float]]:
    """The scores of each decision in the log."""
    scores: dict[str, list[float]] = {}
    with connected(host.Stack.of(clone.folder).serving, 30) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT request::text, score FROM serving.decisions WHERE entity = %s", (entity,))
        for decision, score in cursor.fetchall():
            scores.setdefault(decision, []).append(score)
    return scores
