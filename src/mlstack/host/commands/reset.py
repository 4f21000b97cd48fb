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
    """What a reset would delete, with Docker's sizes."""
    settings.read("COMPOSE_PROJECT_NAME", values=stack.values)
    ours = stack.engine.volumes(stack.name)
    if not ours:
        return []
    sizes = engine.connect(COUNTING).volume_sizes()
    of_stores = [services.read(stack.folder, {**stack.values, **stack.every_part, "STORAGE": store}) for store in settings.STORES]
    cost = {f"{stack.name}_{volume.name}": volume.loss for listed in of_stores for volume in listed.volumes}
    return [Loss(volume, size(sizes.get(volume)), cost.get(volume, "its data")) for volume in ours]


def _stores(stack: Stack) -> list[str]:
    """The present store, and the other one if it has a volume."""
    kept = stack.engine.volumes(stack.name)
    return [store for store in settings.STORES if store == stack.storage or f"{stack.name}_{store}" in kept]


def reset(stack: Stack) -> None:
    """Deletes containers, networks and volumes of this stack; images, `.env`, notebooks and logs are kept."""
    down = ("down", "--volumes", "--remove-orphans")
    # The volume of the other store is there after a change of STORAGE.
    if any(stack.compose.attached(*down, environment={**stack.every_part, "STORAGE": store}) for store in _stores(stack)):
        raise MlstackError(
            "the stack could not be deleted whole.", "Some containers or volumes are left.", "see above, then make reset again"
        )
    folders.tidy(stack.folder)
