"""The scoring service as a deployment of Ray Serve on the part `ray`: replicas on two workers follow an alias under load."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.clone import Clone, users_environment
from tests.support.scoring import GOOD_ROW, MODEL, PROGRAM, mlflow_call
from tests.support.service import wait_until

DEPLOY = """
import ray
from ray import serve
from mlstack.scoring.serve import deployment
ray.init(log_to_driver=False)
serve.start(proxy_location="HeadOnly", http_options=dict(host="0.0.0.0"))
serve.run(deployment.options(num_replicas=2).bind(), name="scoring", route_prefix="/")
"""
ASK = f"""
import json, os, sys, threading
from collections import Counter
import requests
session = requests.Session()
session.auth = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
URL = "http://ray-head:8000"

def score(x):
    row = dict({GOOD_ROW!r}, x=x)
    return session.post(URL + "/endpoints/{MODEL}/invocations", json=dict(dataframe_records=[row]), timeout=60)
"""
# Prints what replicas serve and reject: each time a connection of its own, so that Serve chooses one.
MODELS = (
    ASK
    + """
answers = [session.get(URL + "/models", timeout=60) for _ in range(12)]
print(json.dumps([answer.json() if answer.ok else dict(status=answer.status_code, text=answer.text) for answer in answers]))
"""
)
# Scores until a line is typed, then prints what it was answered.
LOAD = (
    ASK
    + """
typed, outcomes, number = threading.Event(), Counter(), 0
threading.Thread(target=lambda: (sys.stdin.readline(), typed.set()), daemon=True).start()
while not typed.is_set():
    number += 1
    answer = score(float(number))
    version = answer.headers.get("X-Mlstack-Version", "")
    is_right = answer.ok and answer.json()["predictions"] == [number * float(version)]
    outcomes[version if is_right else f"{answer.status_code} {answer.text}"] += 1
print(json.dumps(outcomes))
"""
)


@pytest.fixture(scope="module")
def stack(clone: Clone) -> Iterator[Clone]:
    with clone.started():
        added = clone.make("add", PART="ray")
        assert added.returncode == 0, added.stderr
        clone.in_container("jupyter", "python3", "-c", PROGRAM, MODEL, "good", "good", "crash")
        set_alias(clone, "1")
        clone.in_container("jupyter", "python3", "-W", "ignore", "-c", DEPLOY)
        yield clone


def set_alias(stack: Clone, version: str) -> None:
    answer = mlflow_call(stack, "POST", "registered-models/alias", name=MODEL, alias="champion", version=version)
    assert answer.ok, answer.text


def models(stack: Clone) -> list[dict[str, Any]]:
    """What each of several requests was answered: Serve's proxy chooses a replica for each."""
    answers: list[dict[str, Any]] = json.loads(stack.in_container("jupyter", "python3", "-c", MODELS))
    return answers


def is_served(stack: Clone, version: str) -> bool:
    return all([served["version"] for served in answer.get("served", [])] == [version] for answer in models(stack))


@contextmanager
def load(stack: Clone, outcomes: dict[str, int]) -> Iterator[None]:
    command = ["docker", "compose", "exec", "--no-TTY", "jupyter", "python3", "-c", LOAD]
    with subprocess.Popen(
        command, cwd=stack.folder, env=users_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            yield
        finally:
            output, _ = client.communicate("\n")
    outcomes.update(json.loads(output))


def test_replicas_of_ray_serve_follow_the_alias_and_fail_no_request(stack: Clone) -> None:
    wait_until(lambda: is_served(stack, "1"), seconds=180)
    outcomes: dict[str, int] = {}
    with load(stack, outcomes):
        set_alias(stack, "2")
        wait_until(lambda: is_served(stack, "2"))
        set_alias(stack, "3")
        wait_until(lambda: all("3" in [row["version"] for row in answer["rejected"]] for answer in models(stack)))
        assert is_served(stack, "2")
        set_alias(stack, "1")
        wait_until(lambda: is_served(stack, "1"))
    assert outcomes.keys() == {"1", "2"}, outcomes
