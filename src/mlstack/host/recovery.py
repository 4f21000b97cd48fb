"""Settings of a stack whose `.env` was lost, read back from its containers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlstack.host import services
from mlstack.host.engine import FOLDER_LABEL, SERVICE_LABEL
from mlstack.host.stack import Stack
from mlstack.settings import VARIABLES

# In a container these have other values than on the host.
_OTHER_INSIDE = frozenset({"LOG_DIR", "MLFLOW_TRACKING_URI", "EXTERNAL_POSTGRES_CA", "EXTERNAL_S3_CA"})
MIB = 1024 * 1024


def from_containers(stack: Stack) -> dict[str, str]:
    """The values in the containers that this folder started, running or not; empty without containers."""
    containers = [container for container in stack.engine.inspected(stack.name) if _is_of(container, stack.folder)]
    names = {container["Config"]["Labels"].get(SERVICE_LABEL) for container in containers}
    known = services.read(stack.folder, stack.every_part).by_name.values()
    parts = dict.fromkeys(service.part for service in known if service.part and service.name in names)
    on = {"COMPOSE_PROFILES": ",".join(parts)} if parts else {}
    return dict(pair for container in containers for pair in _settings(stack, container)) | on


def _is_of(container: Mapping[str, Any], project: Path) -> bool:
    """Whether this folder started it, or one that no longer exists: then the folder was moved."""
    folder = Path(container["Config"]["Labels"].get(FOLDER_LABEL, ""))
    return folder.resolve() == project.resolve() or not folder.exists()


def _settings(stack: Stack, container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name, config, host = stack.name, container["Config"], container["HostConfig"]
    service = config["Labels"].get(SERVICE_LABEL, "")
    yield "COMPOSE_PROJECT_NAME", name
    for variable, _, value in (line.partition("=") for line in config["Env"]):
        if variable in VARIABLES and variable not in _OTHER_INSIDE and value:
            yield variable, value
    published = host.get("PortBindings") or {}
    for port in stack.services.by_name[service].ports if service in stack.services.by_name else ():
        if bindings := published.get(f"{port.inside}/tcp"):
            yield port.variable, bindings[0]["HostPort"]
    prefix = service.upper().replace("-", "_")
    if (image := f"{prefix}_IMAGE") in VARIABLES and config["Image"] != f"{name}-{service}":
        yield image, config["Image"]
    networks = container["NetworkSettings"]["Networks"]
    if address := networks.get(f"{name}_ports", {}).get("IPAddress"):  # of a running container alone
        yield "CLOSED_NETWORK", address.rpartition(".")[0]
    for switch in ("on", "off"):
        if (outbound := f"{prefix}_OUTBOUND") in VARIABLES and f"{name}_outbound-{switch}" in networks:
            yield outbound, switch
    if (memory := f"{prefix}_MEMORY") in VARIABLES:
        mib = host["Memory"] // MIB
        yield memory, f"{mib}m" if mib % 1024 else f"{mib // 1024}g"
    if service == "jupyter":
        yield from zip(("HOST_UID", "HOST_GID"), config["User"].split(":"), strict=True)
