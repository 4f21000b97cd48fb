"""Three replicas of the scoring service behind a proxy: what they answer and record is exact while one of them is killed."""

from collections.abc import Iterator

import pytest

from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.postgres import connected
from tests.faults.scoring import AGAIN, NO_ANSWER, logged, working
from tests.support.clone import Clone
from tests.support.scoring import MODEL, Scoring, with_key
from tests.support.service import wait_until

REPLICAS = 3
MOVES = ("2", "3", "2", "1", "3")
KILLED_AT = 2  # while this move is under way


@pytest.fixture(scope="module")
def replicas(clone: Clone) -> Iterator[Scoring]:
    clone.set(COMPOSE_PROFILES="scoring", SCORING_REPLICAS=str(REPLICAS))
    with clone.started():
        yield with_key(clone, "good", "good", "good", "crash")


def kill(scoring: Scoring) -> None:
    """kill -9 of a replica from outside: Docker would not restart it after `docker kill`."""
    container, *_ = scoring.stack.compose("ps", "--quiet", "scoring").split()
    pid = docker("inspect", "--format", "{{.State.Pid}}", container).strip()
    namespace = ("--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "bash")
    docker("run", "--rm", *namespace, scoring.stack.image("postgres"), "-c", f"kill -9 {pid}")


def is_served(scoring: Scoring, version: str) -> bool:
    """Whether each replica serves this version and no other: the proxy asks them in turn. A killed one may give no answer."""
    answers = [scoring.get("/models") for _ in range(4 * REPLICAS)]
    return all(answer.ok and [served["version"] for served in answer.json()["served"]] == [version] for answer in answers)


def deployments(scoring: Scoring) -> list[str]:
    """The versions of the model's deployments, the oldest first."""
    with connected(Stack.of(scoring.stack.folder).serving, 30) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT version FROM serving.deployments WHERE model = %s ORDER BY at", (MODEL,))
        return [version for (version,) in cursor.fetchall()]


def test_answers_decisions_and_deployments_are_exact_while_a_replica_is_killed(replicas: Scoring) -> None:
    wait_until(lambda: deployments(replicas) == ["1"])
    with working(replicas, "replicas") as clients:
        wait_until(lambda: len(clients.answers) >= AGAIN)
        for number, version in enumerate(MOVES):
            replicas.set_alias(version)
            if number == KILLED_AT:
                kill(replicas)
            wait_until(lambda version=version: is_served(replicas, version))  # type: ignore[misc]
            wait_until(lambda number=number: len(deployments(replicas)) > number + 1)  # type: ignore[misc]
    # What the killed replica had not answered yet, and nothing else, failed.
    assert clients.failed.keys() <= {NO_ANSWER, "502"}
    assert clients.failed.total() <= 4, clients.last_failure
    assert [answer for answer in clients.answers if not answer.is_right] == []
    scores = logged(replicas.stack, "replicas")
    assert {answer.decision: [answer.score] for answer in clients.answers}.items() <= scores.items()
    assert all(len(rows) == 1 for rows in scores.values())
    assert len(scores) - len(clients.answers) <= clients.failed.total()
    assert deployments(replicas) == ["1", *MOVES]


def test_each_replica_answers_and_rejects_by_itself(replicas: Scoring) -> None:
    replicas.set_alias("4")
    wait_until(lambda: all("4" in replicas.rejected() for _ in range(4 * REPLICAS)))
    assert is_served(replicas, MOVES[-1])
    replicas.set_alias(MOVES[-1])
    wait_until(lambda: all(replicas.rejected() == {} for _ in range(4 * REPLICAS)))
    for index in range(1, REPLICAS + 1):
        command = ("exec", "--no-TTY", "--index", str(index), "scoring", "python3", "-m", "mlstack.scoring.access", "list")
        assert replicas.stack.compose(*command) == "tests"
