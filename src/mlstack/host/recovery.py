"""Settings of a stack whose `.env` was lost, read back from its containers."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlstack.host.compose import FOLDER_LABEL, HASH_LABEL, PROJECT_LABEL, SERVICE_LABEL, docker
from mlstack.host.ownership import name_of
from mlstack.settings import VARIABLES

# Inside a container these mean something else than on the host.
_OTHER_INSIDE = frozenset({"LOG_DIR", "MLFLOW_TRACKING_URI"})
_PORTS: Mapping[tuple[str, str], str] = {
    ("postgres", "5432/tcp"): "POSTGRES_PORT",
    ("minio", "9000/tcp"): "MINIO_PORT",
    ("minio", "9001/tcp"): "MINIO_CONSOLE_PORT",
    ("mlflow", "5000/tcp"): "MLFLOW_PORT",
    ("jupyter", "8888/tcp"): "JUPYTER_PORT",
}
MIB = 1024 * 1024


def from_containers(project: Path) -> dict[str, str]:
    """What the containers that this folder started, running or not, were given; empty where there are none."""
    name = name_of(project)
    filters = ("--filter", f"label={PROJECT_LABEL}={name}", "--filter", f"label={HASH_LABEL}")
    ids = docker("ps", "--all", "--quiet", *filters).split()
    if not ids:
        return {}
    containers = [container for container in json.loads(docker("inspect", *ids)) if _is_of(container, project)]
    return dict(pair for container in containers for pair in _settings(name, container))


def _is_of(container: Mapping[str, Any], project: Path) -> bool:
    """Whether this folder started it, or one that is gone: then the folder was moved."""
    folder = Path(container["Config"]["Labels"].get(FOLDER_LABEL, ""))
    return folder.resolve() == project.resolve() or not folder.exists()


def _settings(name: str, container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config, host = container["Config"], container["HostConfig"]
    service = config["Labels"].get(SERVICE_LABEL, "")
    yield "COMPOSE_PROJECT_NAME", name
    for variable, _, value in (line.partition("=") for line in config["Env"]):
        if variable in VARIABLES and variable not in _OTHER_INSIDE and value:
            yield variable, value
    for inside, bindings in (host.get("PortBindings") or {}).items():
        if (variable := _PORTS.get((service, inside), "")) and bindings:
            yield variable, bindings[0]["HostPort"]
    if (image := f"{service.upper()}_IMAGE") in VARIABLES and config["Image"] != f"{name}-{service}":
        yield image, config["Image"]
    networks = container["NetworkSettings"]["Networks"]
    if address := networks.get(f"{name}_ports", {}).get("IPAddress"):  # of a running container alone
        yield "CLOSED_NETWORK", address.rpartition(".")[0]
    for switch in ("on", "off"):
        if f"{name}_outbound-{switch}" in networks:
            yield f"{service.upper()}_OUTBOUND", switch
    if service == "jupyter":
        mib = host["Memory"] // MIB
        yield "JUPYTER_MEMORY", f"{mib}m" if mib % 1024 else f"{mib // 1024}g"
        yield from zip(("HOST_UID", "HOST_GID"), config["User"].split(":"), strict=True)
