"""The networks of the stack as Docker has them: whether their addresses are free, and those that nothing uses any more."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

from mlstack.errors import MlstackError
from mlstack.host import engine
from mlstack.host.compose import compose_config
from mlstack.logger import get_logger

log = get_logger("mlstack.networks")


def check(values: Mapping[str, str]) -> MlstackError | None:
    """Whether another stack or program has the addresses of CLOSED_NETWORK."""
    wanted = ip_network(f"{values['CLOSED_NETWORK']}.0/24")
    for network in engine.connect().networks():
        if network.project != values["COMPOSE_PROJECT_NAME"] and any(
            ip_network(subnet).overlaps(wanted) for subnet in network.subnets
        ):
            return MlstackError(
                f"the addresses {wanted} are used by Docker's network {network.name}.",
                "Two networks cannot have the same addresses; CLOSED_NETWORK in .env chooses those of this stack.",
                "remove the line CLOSED_NETWORK from .env, then make up: it chooses others",
            )
    return None


def remove_unused(project: Path) -> None:
    """Removes networks of this stack that docker-compose.yml no longer has, as after an upgrade or a changed *_OUTBOUND."""
    config = compose_config(project)
    wanted = {network["name"] for network in config["networks"].values()}
    docker = engine.connect()
    for network in docker.networks():
        if network.project == config["name"] and network.name not in wanted and docker.remove_network(network):
            log.info("removed the network %s, which nothing uses any more", network.name)
