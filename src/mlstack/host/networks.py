"""The networks of the stack as Docker has them: addresses that are free, and networks that nothing uses any more."""

from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path

from mlstack import settings
from mlstack.host import engine, env_file
from mlstack.host.compose import compose_config
from mlstack.logger import get_logger

log = get_logger("mlstack.networks")


def ensure_free(project: Path) -> None:
    """Gives the stack other addresses where another stack or program has those of CLOSED_NETWORK, as in a copied `.env`."""
    values = settings.of_project(project)
    if user := _user_of(values):
        env_file.change(project, CLOSED_NETWORK=env_file.closed_network())
        log.warning(
            "the addresses %s.* are used by Docker's network %s: chose others for this stack", values["CLOSED_NETWORK"], user
        )


def _user_of(values: Mapping[str, str]) -> str | None:
    """The network of somebody else that has addresses of CLOSED_NETWORK."""
    wanted = ip_network(f"{values['CLOSED_NETWORK']}.0/24")
    foreign = [network for network in engine.connect().networks() if network.project != values["COMPOSE_PROJECT_NAME"]]
    overlapping = (network.name for network in foreign if any(ip_network(subnet).overlaps(wanted) for subnet in network.subnets))
    return next(overlapping, None)


def remove_unused(project: Path) -> None:
    """Removes networks of this stack that docker-compose.yml no longer has, as after an upgrade or a changed *_OUTBOUND."""
    config = compose_config(project)
    wanted = {network["name"] for network in config["networks"].values()}
    docker = engine.connect()
    for network in docker.networks():
        if network.project == config["name"] and network.name not in wanted and docker.remove_network(network):
            log.info("removed the network %s, which nothing uses any more", network.name)
