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
    command = ("docker", "compose", "exec", "--no-TTY", "jupyter", "python3", "-c", PROGRAM, name, str(trials))
    running = subprocess.Popen(
        command, cwd=stack.folder, env=users_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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


def is_healthy(container: str) -> bool:
    return docker("inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"
