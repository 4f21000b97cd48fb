"""Runs work in a one-shot container, which has the credentials for it."""

import json
from typing import Any

from mlstack.errors import MlstackError
from mlstack.host.compose import CommandFailed, Program


def in_one_shot(compose: Program, service: str, action: str, **request: Any) -> Any:
    """Runs an action of mlstack.jobs.gc in its own container and returns its answer. Raises MlstackError with its error."""
    command = ("run", "--rm", "--no-deps", "--no-TTY", service, "python3", "-m", "mlstack.jobs.gc", action)
    try:
        return json.loads(compose.output(*command, stdin=json.dumps(request)))
    except CommandFailed as error:
        if "No module named mlstack.jobs.gc" in error.stderr:
            raise MlstackError(
                "the images are older than this version of the project.", "They lack what is needed.", "make up"
            ) from error
        lines = error.stderr.strip().splitlines() or [error.wrong]
        raise MlstackError(
            f"cleaning up failed: {lines[-1].strip()}", "What was not removed stays; nothing else is lost.", "make doctor"
        ) from error
