"""docker and docker compose, as the commands of this project use them."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError, quoted

_CLEAR_LINE = b"\x1b[2K"  # compose's own, before the name of the service, also where it is told to use no escapes

# Compose's labels on what it makes: the stack's name, and the folder that it was started from.
PROJECT_LABEL, FOLDER_LABEL = "com.docker.compose.project", "com.docker.compose.project.working_dir"
SERVICE_LABEL = "com.docker.compose.service"
# Images that compose builds hand the other labels on to whatever is started from them by hand; this one only compose writes.
HASH_LABEL = "com.docker.compose.config-hash"


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


def compose_config(project: Path) -> dict[str, Any]:
    """The compose file as compose reads it. Raises MlstackError with compose's own words."""
    config: dict[str, Any] = json.loads(compose(project, "config", "--format", "json"))
    return config


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


def followed_logs(project: Path, service: str | None, show: Callable[[str], object]) -> int:
    """Shows each line that the containers write, until they end or Ctrl-C, and returns compose's exit code."""
    _require_docker()
    command = ["docker", "compose", "--ansi", "never", "logs", "--follow", "--tail", "100", "--", *([service] if service else [])]
    with subprocess.Popen(command, cwd=project, env=settings.for_commands(), stdout=subprocess.PIPE) as process:
        assert process.stdout  # noqa: S101 - a pipe, as asked for
        for line in process.stdout:
            text = line.removeprefix(_CLEAR_LINE).removesuffix(b"\n").decode(errors="backslashreplace")
            show(quoted(text))
    return process.returncode


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
