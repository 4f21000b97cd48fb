"""Checks that a stack belongs to this folder: no command may reach the stack that another folder started."""

from contextlib import suppress
from pathlib import Path

from mlstack.errors import MlstackError
from mlstack.host.stack import Stack


def require_own(stack: Stack) -> None:
    """Raises MlstackError when containers of this stack's name were started from another folder that still has an `.env`.

    A folder that no longer exists was moved or renamed: its stack belongs to the folder that has its `.env` now.
    """
    own = stack.folder.resolve()
    for folder in sorted(_folders(stack) - {own}):
        if (folder / ".env").is_file() and Stack.of(folder).name == stack.name:
            raise MlstackError(
                f"the stack {stack.name} was started from {folder}, not from {own}.",
                "A command from here would stop, change or delete what belongs to the other folder.",
                f"run it in {folder}; or give this folder a stack of its own: another COMPOSE_PROJECT_NAME and other ports in"
                " .env (where there is no .env yet: COMPOSE_PROJECT_NAME=… MLFLOW_PORT=… make up)",
            )


def _folders(stack: Stack) -> set[Path]:
    """The folders from which the stack's containers were started, running or not."""
    with suppress(MlstackError):  # without an engine no stack can be reached; the command itself reports what is missing
        return {Path(folder).resolve() for folder in stack.engine.folders(stack.name)}
    return set()
