"""docker and docker compose, as the commands of this project use them."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError

# Compose's labels on what it makes: the stack's name, and the folder that it was started from.
PROJECT_LABEL, FOLDER_LABEL = "com.docker.compose.project", "com.docker.compose.project.working_dir"
SERVICE_LABEL = "com.docker.compose.service"


@dataclass(frozen=True)
class Container:
    """One container of the stack, running or not."""

    service: str
    name: str
    state: str
    health: str
    exit_code: int
    status: str

    @property
    def is_well(self) -> bool:
        """Running and, where it has a healthcheck, healthy; or a one-shot that did its work."""
        if self.state == "running":
            return self.health in ("", "healthy")
        return self.state == "exited" and self.exit_code == 0


def docker(*arguments: str) -> str:
    """The output of a docker command. Raises MlstackError with docker's own words."""
    return _output(["docker", *arguments], cwd=None)


def compose(project: Path, *arguments: str) -> str:
    """The output of a docker compose command in this project. Raises MlstackError with compose's own words."""
    return _output(["docker", "compose", *arguments], cwd=project)


def attached(project: Path, *arguments: str, environment: dict[str, str] | None = None) -> int:
    """Runs a docker compose command on the user's own terminal and returns its exit code."""
    command = ["docker", "compose", *arguments]
    _require_docker()
    return subprocess.run(command, cwd=project, env=settings.for_commands(**(environment or {})), check=False).returncode


def containers(project: Path) -> list[Container]:
    """Every container of the stack."""
    return [
        Container(
            service=str(row["Service"]),
            name=str(row["Name"]),
            state=str(row["State"]),
            health=str(row["Health"]),
            exit_code=int(row["ExitCode"]),
            status=str(row["Status"]),
        )
        for row in _rows(compose(project, "ps", "--all", "--format", "json"))
    ]


def last_lines(container: Container, count: int) -> list[str]:
    """The end of what a container wrote, on either stream."""
    command = ["docker", "logs", "--tail", str(count), container.name]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout.splitlines()


def volumes(name: str) -> list[str]:
    """Names of the volumes that hold this stack's data."""
    return docker("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={name}").split()


def _rows(output: str) -> list[dict[str, str | int]]:
    # A JSON list until compose 2.20, one object a line since 2.21.
    text = output.strip()
    rows: list[dict[str, str | int]] = (
        json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    )
    return rows


def _require_docker() -> None:
    if shutil.which("docker") is None:
        raise MlstackError(
            "docker is not on the PATH.",
            "Everything here runs in containers.",
            "make up (it installs what is missing, or says how)",
        )


def _output(command: Sequence[str], cwd: Path | None) -> str:
    _require_docker()
    done = subprocess.run(command, cwd=cwd, env=settings.for_commands(), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MlstackError(
            f"{' '.join(command[:3])} failed: {lines[-1]}",
            "The stack could not be looked at or changed.",
            "scripts/engine.sh check",
        )
    return done.stdout
