"""The stack's networks in Docker: free addresses, and unused networks."""

from ipaddress import ip_network

from mlstack.host import env_file
from mlstack.host.compose import config
from mlstack.host.stack import Stack
from mlstack.logger import get_logger

log = get_logger("mlstack.networks")


def ensure_free(stack: Stack) -> Stack:
    """Chooses other addresses if another stack or program has those of CLOSED_NETWORK, as with a copied `.env`."""
    user = _user_of(stack)
    if not user:
        return stack
    env_file.change(stack.folder, CLOSED_NETWORK=env_file.closed_network())
    log.warning(
        "the addresses %s.* are used by Docker's network %s: chose others for this stack", stack.values["CLOSED_NETWORK"], user
    )
    return stack.reread()


def _user_of(stack: Stack) -> str | None:
    """Another project's network with addresses of CLOSED_NETWORK."""
    chosen = ip_network(f"{stack.values['CLOSED_NETWORK']}.0/24")
    foreign = [network for network in stack.engine.networks() if network.project != stack.name]
    overlapping = (network.name for network in foreign if any(ip_network(subnet).overlaps(chosen) for subnet in network.subnets))
    return next(overlapping, None)


def missing(stack: Stack) -> set[str]:
    """Networks that the services of this stack use and Docker does not have."""
    return _used(stack) - {network.name for network in stack.engine.networks()}


def remove_unused(stack: Stack) -> None:
    """Removes networks of this stack that no service uses, as after an upgrade or a changed *_OUTBOUND."""
    used = _used(stack)
    for network in stack.engine.networks():
        if network.project == stack.name and network.name not in used and stack.engine.remove_network(network):
            log.info("removed the network %s, which nothing uses any more", network.name)


def _used(stack: Stack) -> set[str]:
    parsed = config(stack.compose)
    return {parsed["networks"][name]["name"] for service in parsed["services"].values() for name in service.get("networks", {})}
