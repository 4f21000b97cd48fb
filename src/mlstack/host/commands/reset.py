"""`make reset`: back to an empty stack, and only on purpose."""

import json
from dataclasses import dataclass
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.compose import attached, docker, volumes

# What losing a volume costs, as the comments in docker-compose.yml say it.
COSTS = {
    "postgres": "every run, metric, model version and account",
    "minio": "every artifact and model",
    "home": "packages and settings that users added in Jupyter",
    "spool": "nothing: uploads on their way",
    "scratch": "temporary files of notebooks",
}


@dataclass(frozen=True)
class Loss:
    """A volume that a reset deletes."""

    volume: str
    size: str
    cost: str


def losses(project: Path) -> list[Loss]:
    """What a reset would delete, with sizes as Docker tells them. Raises MlstackError without an `.env`."""
    if not (project / ".env").exists():
        raise MlstackError(
            "there is no .env here.",
            "It says which stack belongs to this folder; volumes of the usual name may be another folder's.",
            "make env writes one (if it was lost: with what the containers were given)",
        )
    name = settings.of_project(project)["COMPOSE_PROJECT_NAME"]
    ours = volumes(name)
    if not ours:
        return []
    usage = json.loads(docker("system", "df", "--verbose", "--format", "{{json .Volumes}}"))
    sizes = {row["Name"]: row["Size"] for row in usage}
    return [
        Loss(volume, sizes.get(volume, "?"), COSTS.get(volume.removeprefix(f"{name}_"), "its data")) for volume in sorted(ours)
    ]


def reset(project: Path) -> None:
    """Deletes containers, networks and volumes of this stack; images, `.env`, notebooks and logs stay."""
    if attached(project, "down", "--volumes", "--remove-orphans"):
        raise MlstackError(
            "the stack could not be deleted whole.", "Some containers or volumes are left.", "see above, then make reset again"
        )
