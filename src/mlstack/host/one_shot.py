"""Work that a command leaves to a one-shot container, which has the credentials for it."""

import json
import subprocess
from pathlib import Path
from typing import Any

from mlstack import settings
from mlstack.errors import MlstackError


def in_one_shot(project: Path, service: str, action: str, **request: Any) -> Any:
    """Runs an action of `__main__` in a container of its own and returns its answer. Raises MlstackError with its error."""
    command = ["docker", "compose", "run", "--rm", "--no-deps", "--no-TTY", service, "python3", "-m", "mlstack.jobs.gc", action]
    done = subprocess.run(
        command, cwd=project, env=settings.for_commands(), input=json.dumps(request), capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return json.loads(done.stdout)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    if "No module named mlstack.jobs.gc" in done.stderr:
        raise MlstackError("the images are older than this version of the project.", "They lack what is needed.", "make up")
    raise MlstackError(
        f"cleaning up failed: {lines[-1].strip()}", "What was not removed stays; nothing else is lost.", "make doctor"
    )
