"""Whose stack a name means: no command of one folder may reach the stack that another folder started."""

from contextlib import suppress
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.compose import FOLDER_LABEL, PROJECT_LABEL, docker

DEFAULT_NAME = "mlstack"  # as in .env.example


def name_of(project: Path) -> str:
    """The name of this folder's stack, also before it has an `.env`."""
    return settings.of_project(project).get("COMPOSE_PROJECT_NAME") or DEFAULT_NAME


def require_own(project: Path) -> None:
    """Raises MlstackError when containers of this stack's name were started from another folder that still has an `.env`.

    A folder that is gone was moved or renamed: its stack belongs to the folder that has its `.env` now.
    """
    name, own = name_of(project), project.resolve()
    for folder in sorted(_folders(name) - {own}):
        if (folder / ".env").is_file() and name_of(folder) == name:
            raise MlstackError(
                f"the stack {name} was started from {folder}, not from {own}.",
                "A command from here would stop, change or delete what belongs to the other folder.",
                f"run it in {folder}; or give this folder a stack of its own: another COMPOSE_PROJECT_NAME and other ports in"
                " .env (where there is no .env yet: COMPOSE_PROJECT_NAME=… MLFLOW_PORT=… make up)",
            )


def _folders(name: str) -> set[Path]:
    """The folders from which the stack's containers were started, running or not."""
    label = f'{{{{.Label "{FOLDER_LABEL}"}}}}'
    with suppress(MlstackError):  # without an engine no stack can be reached; the command itself says what is missing
        listed = docker("ps", "--all", "--filter", f"label={PROJECT_LABEL}={name}", "--format", label)
        return {Path(line).resolve() for line in listed.splitlines() if line}
    return set()
