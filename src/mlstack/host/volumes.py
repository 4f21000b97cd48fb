"""Data volumes belong to the user that their service runs as. One that an image with another uid filled is given over once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlstack.host.compose import docker
from mlstack.host.stack import Stack
from mlstack.logger import get_logger

log = get_logger("mlstack.volumes")

# A container that sees these volumes and nothing else.
_CONFINED = ("--network=none", "--user=0:0", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only")
# It may look into every folder and change owners.
_MAY_GIVE = ("--cap-add=CHOWN", "--cap-add=DAC_READ_SEARCH")


@dataclass(frozen=True)
class Volume:
    """A volume, the service that uses it, the service's image, and the uid that the image runs as."""

    name: str
    service: str
    image: str
    uid: str


def give_to_services(stack: Stack) -> None:
    """Gives each volume to its service's user where it belongs to another; the service is stopped for that.

    May be interrupted and repeated: a folder is given after all that is in it, and the volume's own folder last, so that its
    owner alone shows whether there is anything to do. Raises MlstackError with docker's own words.
    """
    found = list(_volumes(stack))
    for volume, owner in zip(found, _owners(found), strict=True):
        if owner != volume.uid:
            what = "the volume %s belongs to uid %s: %s is stopped while it is given to uid %s"
            log.info(what, volume.name, owner, volume.service, volume.uid)
            stack.compose.output("stop", volume.service)
            _give(volume)


def _volumes(stack: Stack) -> Iterator[Volume]:
    """The volumes that are there. None of an image that is not ours, or that any user can run.

    On a user's own machine Jupyter runs as that user, whom no image knows: its folders are open to all.
    """
    there = stack.engine.volumes(stack.name)
    for name in stack.built:
        service = stack.services.by_name[name]
        uid = stack.engine.user(service.image).partition(":")[0]
        if uid and service.user in ("", uid):
            for volume in service.volumes:
                if f"{stack.name}_{volume.name}" in there:
                    yield Volume(f"{stack.name}_{volume.name}", name, service.image, uid)


def _owners(found: Sequence[Volume]) -> list[str]:
    if not found:
        return []
    mounts = [f"--volume={volume.name}:/volumes/{volume.name}:ro" for volume in found]
    paths = [f"/volumes/{volume.name}" for volume in found]
    return docker("run", "--rm", *_CONFINED, *mounts, "--entrypoint=stat", found[0].image, "--format=%u", *paths).split()


def _give(volume: Volume) -> None:
    container = ("run", "--rm", "--init", *_CONFINED, *_MAY_GIVE, f"--volume={volume.name}:/volume", "--entrypoint=find")
    owner = f"{volume.uid}:{volume.uid}"
    give = ("/volume", "-xdev", "-depth", "!", "-uid", volume.uid, "-exec", "chown", "--no-dereference", owner, "{}", "+")
    docker(*container, volume.image, *give)
