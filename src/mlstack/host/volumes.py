"""Data volumes belong to the user that their service runs as. A volume of an older image with another uid changes owner once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.logger import get_logger

log = get_logger("mlstack.volumes")

# A container with only these volumes.
_CONFINED = ("--network=none", "--user=0:0", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only")
# It may read every folder and change owners.
_MAY_GIVE = ("--cap-add=CHOWN", "--cap-add=DAC_READ_SEARCH")


@dataclass(frozen=True)
class Volume:
    """A volume, the service that uses it, the service's image, and the uid that the image runs as."""

    name: str
    service: str
    image: str
    uid: str


def give_to_services(stack: Stack) -> None:
    """Changes the owner of each volume to its service's user, if it belongs to another; stops the service for that.

    May be interrupted and repeated: a folder changes its owner after its content, and the volume's root last, so that the
    root's owner shows whether there is anything to do. Raises MlstackError with docker's own message.
    """
    volumes = list(_volumes(stack))
    for volume, owner in zip(volumes, _owners(volumes), strict=True):
        if owner != volume.uid:
            message = "the volume %s belongs to uid %s: %s is stopped while it is given to uid %s"
            log.info(message, volume.name, owner, volume.service, volume.uid)
            stack.compose.output("stop", volume.service)
            _give(volume)


def _volumes(stack: Stack) -> Iterator[Volume]:
    """The existing volumes, without those of foreign images or images that any user can run.

    On a user's own computer Jupyter runs as that user, which no image knows: its folders are open to all.
    """
    existing = stack.engine.volumes(stack.name)
    for name in stack.built:
        service = stack.services.by_name[name]
        uid = stack.engine.user(service.image).partition(":")[0]
        if uid and service.user in ("", uid):
            for volume in service.volumes:
                if f"{stack.name}_{volume.name}" in existing:
                    yield Volume(f"{stack.name}_{volume.name}", name, service.image, uid)


def _owners(volumes: Sequence[Volume]) -> list[str]:
    if not volumes:
        return []
    mounts = [f"--volume={volume.name}:/volumes/{volume.name}:ro" for volume in volumes]
    paths = [f"/volumes/{volume.name}" for volume in volumes]
    return docker("run", "--rm", *_CONFINED, *mounts, "--entrypoint=stat", volumes[0].image, "--format=%u", *paths).split()


def _give(volume: Volume) -> None:
    container = ("run", "--rm", "--init", *_CONFINED, *_MAY_GIVE, f"--volume={volume.name}:/volume", "--entrypoint=find")
    owner = f"{volume.uid}:{volume.uid}"
    give = ("/volume", "-xdev", "-depth", "!", "-uid", volume.uid, "-exec", "chown", "--no-dereference", owner, "{}", "+")
    docker(*container, volume.image, *give)
