"""Replicas of the scoring service behind a proxy: what they answer and record is exact while one of them is killed, and the
commands of the stack know them."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlstack.host.stack import Stack
from mlstack.postgres import connected
from tests.faults.scoring import AGAIN, NO_ANSWER, logged, working
from tests.support.clone import Clone
from tests.support.scoring import GOOD_ROW, MODEL, Scoring, with_key
from tests.support.service import wait_until

REPLICAS = 3
MOVES = ("2", "3", "2", "1", "3")
OF_THE_PART = ("COMPOSE_", "SCORING_", "SERVING_", "DECISION_")  # variables
KILLED_AT = 2  # while this move is under way


@pytest.fixture(scope="module")
def replicas(clone: Clone) -> Iterator[Scoring]:
    clone.set(COMPOSE_PROFILES="scoring", SCORING_REPLICAS=str(REPLICAS))
    with clone.started():
        yield with_key(clone, "good", "good", "good", "crash")


def signal(scoring: Scoring, name: str, replica: int = 1) -> None:
    """Sends a signal to each process of a replica, which Docker restarts once they have ended."""
    scoring.stack.compose("exec", "--no-TTY", "--index", str(replica), "scoring", "bash", "-c", f"kill -{name} -1")


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
    wait_until(lambda: is_served(replicas, "1"))
    wait_until(lambda: deployments(replicas) == ["1"])
    with working(replicas, "replicas") as clients:
        wait_until(lambda: len(clients.answers) >= AGAIN)
        for number, version in enumerate(MOVES):
            replicas.set_alias(version)
            if number == KILLED_AT:
                signal(replicas, "KILL")
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


def test_request_that_was_sent_is_not_sent_to_another_replica(replicas: Scoring) -> None:
    """A replica that is stopped takes its share of the requests and never answers: what it did with one is not known."""
    replicas.set_alias(MOVES[-1])
    wait_until(lambda: is_served(replicas, MOVES[-1]))
    signal(replicas, "STOP")
    with ThreadPoolExecutor(REPLICAS) as threads:
        asked = [threads.submit(replicas.score, GOOD_ROW) for _ in range(REPLICAS)]
        wait_until(lambda: sum(answer.done() for answer in asked) == REPLICAS - 1)
        signal(replicas, "KILL")
        assert Counter(answer.result().status_code for answer in asked) == {200: REPLICAS - 1, 502: 1}


def test_each_replica_answers_and_rejects_by_itself(replicas: Scoring) -> None:
    replicas.set_alias("4")
    wait_until(lambda: all("4" in replicas.rejected() for _ in range(4 * REPLICAS)))
    assert is_served(replicas, MOVES[-1])
    replicas.set_alias(MOVES[-1])
    wait_until(lambda: all(replicas.rejected() == {} for _ in range(4 * REPLICAS)))
    for index in range(1, REPLICAS + 1):
        command = ("exec", "--no-TTY", "--index", str(index), "scoring", "python3", "-m", "mlstack.scoring.access", "list")
        assert replicas.stack.compose(*command) == "tests"


def containers(scoring: Scoring, service: str = "scoring") -> int:
    return len(scoring.stack.compose("ps", "--quiet", service).split())


def make(scoring: Scoring, *targets: str, **variables: str) -> str:
    done = scoring.stack.make(*targets, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_number_of_replicas_changes_while_clients_score(replicas: Scoring) -> None:
    """By SCORING_REPLICAS and `make up`, and by `--scale` until the next of them."""
    with working(replicas, "scaled") as clients:
        replicas.stack.set(SCORING_REPLICAS="2")
        make(replicas, "up")
        assert containers(replicas) == 2
        failed = Counter(clients.failed)
        replicas.stack.compose("up", "--detach", "--wait", "--scale", "scoring=4")
        assert containers(replicas) == 4
        begun = len(clients.answers)
        wait_until(lambda: len(clients.answers) >= begun + AGAIN)
        assert clients.failed == failed, clients.last_failure
        replicas.stack.set(SCORING_REPLICAS=str(REPLICAS))
        make(replicas, "up")
        assert containers(replicas) == REPLICAS
    assert "404" not in clients.failed  # of a replica that is up before it serves
    assert [answer for answer in clients.answers if not answer.is_right] == []
    scores = logged(replicas.stack, "scaled")
    assert {answer.decision: [answer.score] for answer in clients.answers}.items() <= scores.items()
    assert all(len(rows) == 1 for rows in scores.values())


def test_status_and_doctor_know_each_replica(replicas: Scoring) -> None:
    status = json.loads(make(replicas, "status", JSON="1"))["services"]
    names = [service["name"] for service in status]
    assert (names.count("scoring"), names.count("scoring-proxy")) == (REPLICAS, 1)
    assert all(service["is_healthy"] for service in status)
    checks = json.loads(make(replicas, "doctor", JSON="1"))["checks"]
    assert {check["state"] for check in checks if check["reach"] == "scoring"} == {"ok"}


def test_lost_env_gets_the_replicas_back_from_their_containers(replicas: Scoring) -> None:
    before = replicas.stack.values
    (replicas.stack.folder / ".env").unlink()
    make(replicas, "env", COMPOSE_PROJECT_NAME=replicas.stack.name)
    known = {name: replicas.stack.values[name] for name in before if name.startswith(OF_THE_PART)}
    assert known == {name: before[name] for name in known}
    assert known["SCORING_REPLICAS"] == str(REPLICAS)
    make(replicas, "up")
    assert (containers(replicas), replicas.score(GOOD_ROW).ok) == (REPLICAS, True)


def test_rotation_replaces_the_secrets_of_each_replica(replicas: Scoring) -> None:
    before = replicas.stack.values["SCORING_DB_PASSWORD"]
    make(replicas, "rotate", YES="1")
    assert replicas.stack.values["SCORING_DB_PASSWORD"] != before
    assert containers(replicas) == REPLICAS
    assert all(replicas.score(GOOD_ROW).ok for _ in range(4 * REPLICAS))


def test_one_service_and_replicas_take_turns_while_the_part_is_off(replicas: Scoring) -> None:
    for number in ("", str(REPLICAS)):
        make(replicas, "remove", PART="scoring")
        assert (containers(replicas), containers(replicas, "scoring-proxy")) == (0, 0)
        replicas.stack.set(SCORING_REPLICAS=number)
        make(replicas, "add", PART="scoring")
        assert (containers(replicas), containers(replicas, "scoring-proxy")) == ((REPLICAS, 1) if number else (1, 0))
        wait_until(lambda: replicas.score(GOOD_ROW).ok)  # with the same key
