"""Searches on the part `ray`: started in Jupyter as a notebook would, their runs, and nodes that are killed."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from mlstack.host.compose import docker
from tests.support.clone import ROOT, Clone, users_environment

PROGRAM = (ROOT / "tests/support/ray_program.py").read_text()
GATE = "ray-gate"
JOINED = """
import os, requests
try:
    answer = requests.get(os.environ["RAY_API_SERVER_ADDRESS"] + "/nodes?view=summary",
        headers=dict(Authorization="Bearer " + os.environ["RAY_AUTH_TOKEN"]), timeout=30)
    nodes = [node["raylet"] for node in answer.json()["data"]["summary"]] if answer.ok else []
    print(sum(node["state"] == "ALIVE" and not node.get("isHeadNode") for node in nodes) if answer.ok else answer.status_code)
except requests.RequestException:
    print("no answer")
"""


@dataclass(frozen=True)
class Search:
    """The search of a name, in the experiment `searches`."""

    client: MlflowClient
    name: str

    @property
    def trials(self) -> list[Run]:
        """The children of its run; none before it has one."""
        experiment = self.client.get_experiment_by_name("searches")
        runs = self.client.search_runs([experiment.experiment_id]) if experiment else []
        parents = [run.info.run_id for run in runs if run.data.tags.get("mlstack.search") == self.name]
        return [run for run in runs if run.data.tags.get("mlflow.parentRunId") in parents]

    @property
    def begun(self) -> int:
        """How many trials have logged a model and wait for the gate."""
        return sum("begun" in run.data.metrics for run in self.trials)

    @property
    def statuses(self) -> list[str]:
        return sorted(run.info.status for run in self.trials)

    def models(self, run: Run) -> list[LoggedModel]:
        return list(self.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"))

    def is_complete(self, run: Run) -> bool:
        """Whether a trial FINISHED with its result and one model that can be loaded."""
        is_finished = run.info.status == "FINISHED" and "objective" in run.data.metrics
        return is_finished and [model.status for model in self.models(run)] == ["READY"]


def open_gate(client: MlflowClient) -> None:
    client.set_experiment_tag(_gate(client), "open", "1")


def close_gate(client: MlflowClient) -> None:
    gate = _gate(client)
    if "open" in client.get_experiment(gate).tags:
        client.delete_experiment_tag(gate, "open")


def _gate(client: MlflowClient) -> str:
    experiment = client.get_experiment_by_name(GATE)
    return str(experiment.experiment_id if experiment else client.create_experiment(GATE))


@contextmanager
def started(stack: Clone, name: str, trials: int) -> Iterator[subprocess.Popen[str]]:
    """A search that runs in Jupyter."""
    with program(stack, PROGRAM, name, str(trials)) as running:
        yield running


@contextmanager
def program(stack: Clone, text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that runs in Jupyter, with its input and output."""
    running = subprocess.Popen(
        ("docker", "compose", "exec", "--no-TTY", "jupyter", "python3", "-c", text, *arguments),
        cwd=stack.folder,
        env=users_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def containers(stack: Clone, service: str) -> list[str]:
    return stack.compose("ps", "--quiet", service).split()


def kill(stack: Clone, container: str) -> None:
    """kill -9 of a container's first process, from outside: Docker would not start it again after `docker kill`."""
    pid = docker("inspect", "--format", "{{.State.Pid}}", container).strip()
    docker(
        "run", "--rm", "--pid=host", "--user=0", "--network=none", "--entrypoint=bash",
        stack.image("postgres"), "-c", f"kill -9 {pid}",
    )  # fmt: skip


def joined(stack: Clone, **environment: str) -> str:
    """The number of workers that have joined the head, or the status with which Ray rejects the token."""
    return stack.in_container("jupyter", "python3", "-c", JOINED, **environment).strip()


def has_workers(stack: Clone, count: int) -> bool:
    """Whether so many workers have joined the head, and all of them are healthy."""
    nodes = [*containers(stack, "ray-head"), *containers(stack, "ray-worker")]
    return joined(stack) == str(count) and len(nodes) == count + 1 and all(map(is_healthy, nodes))


def is_healthy(container: str) -> bool:
    return docker("inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"
