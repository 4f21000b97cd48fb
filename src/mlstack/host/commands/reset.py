"""`make reset`: back to an empty stack, only on request."""

from dataclasses import dataclass

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import engine, folders, services
from mlstack.host.render import size
from mlstack.host.stack import Stack

COUNTING = 300  # seconds that Docker may take to count the sizes


@dataclass(frozen=True)
class Loss:
    """A volume that a reset deletes."""

    volume: str
    size: str
    cost: str


def losses(stack: Stack) -> list[Loss]:
    """What a reset would delete, with Docker's sizes. Raises MlstackError without an `.env`."""
    if stack.env is None:
        raise MlstackError(
            "there is no .env here.",
            "It says which stack belongs to this folder; volumes of the usual name may be another folder's.",
            "make env writes one (if it was lost: with what the containers were given)",
        )
    settings.read("COMPOSE_PROJECT_NAME", values=stack.values)
    ours = stack.engine.volumes(stack.name)
    if not ours:
        return []
    sizes = engine.connect(COUNTING).volume_sizes()
    volumes = services.read(stack.folder, {**stack.values, **stack.every_part}).volumes
    cost = {f"{stack.name}_{volume.name}": volume.loss for volume in volumes}
    return [Loss(volume, size(sizes.get(volume)), cost.get(volume, "its data")) for volume in ours]


def reset(stack: Stack) -> None:
    """Deletes containers, networks and volumes of this stack; images, `.env`, notebooks and logs are kept."""
    if stack.compose.attached("down", "--volumes", "--remove-orphans", environment=stack.every_part):
        raise MlstackError(
            "the stack could not be deleted whole.", "Some containers or volumes are left.", "see above, then make reset again"
        )
    folders.tidy(stack.folder)
