"""The Docker engine's own API, for what its command line does too slowly or not at all."""

import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import docker
import requests
from docker.context import ContextAPI
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.compose import not_installed

# Compose's labels on its containers: the stack's name, and the folder that it was started from.
PROJECT_LABEL, FOLDER_LABEL = "com.docker.compose.project", "com.docker.compose.project.working_dir"
SERVICE_LABEL = "com.docker.compose.service"
# Containers started by hand inherit the other labels from images that compose builds; only compose writes this one.
HASH_LABEL = "com.docker.compose.config-hash"
ONE_OFF_LABEL = "com.docker.compose.oneoff"
VERSION_LABEL = "org.opencontainers.image.version"


@dataclass(frozen=True)
class Mount:
    """A volume in a container: its name, its path inside, and its path on the engine's host."""

    volume: str
    target: str
    source: str


@dataclass(frozen=True)
class Container:
    """One container of the stack, running or not. `version` is its image's label, empty if there is none.

    `started` is None before the first start, `memory_limit` (bytes) without a limit.
    """

    id: str
    service: str
    name: str
    state: str
    health: str
    exit_code: int
    started: datetime | None
    restarts: int
    out_of_memory: bool
    memory_limit: int | None
    config_hash: str
    version: str
    folder: str
    addresses: frozenset[str]
    mounts: tuple[Mount, ...]

    @classmethod
    def of(cls, inspected: Mapping[str, Any]) -> Self:
        """A container as the engine describes it."""
        state, labels = inspected["State"], inspected["Config"]["Labels"]
        bindings = (inspected["NetworkSettings"].get("Ports") or {}).values()
        return cls(
            id=inspected["Id"],
            service=labels[SERVICE_LABEL],
            name=inspected["Name"].removeprefix("/"),
            state=state["Status"],
            health=state.get("Health", {}).get("Status", ""),
            exit_code=state["ExitCode"],
            started=_time(state["StartedAt"]),
            restarts=inspected["RestartCount"],
            out_of_memory=state["OOMKilled"],
            memory_limit=inspected["HostConfig"]["Memory"] or None,
            config_hash=labels[HASH_LABEL],
            version=labels.get(VERSION_LABEL, ""),
            folder=labels.get(FOLDER_LABEL, ""),
            addresses=frozenset(
                f"{binding['HostIp']}:{binding['HostPort']}"
                for bindings_of_port in bindings
                for binding in bindings_of_port or ()
            ),
            mounts=tuple(
                Mount(mount["Name"], mount["Destination"], mount["Source"])
                for mount in inspected["Mounts"]
                if mount["Type"] == "volume"
            ),
        )

    @property
    def is_running(self) -> bool:
        return self.state == "running"

    @property
    def is_healthy(self) -> bool:
        """Running and, with a healthcheck, healthy; or a one-shot that succeeded."""
        if self.is_running:
            return self.health in ("", "healthy")
        return self.state == "exited" and self.exit_code == 0

    @property
    def description(self) -> str:
        """State, health and exit code, in Docker's words."""
        if self.is_running:
            return f"{self.state} ({self.health})" if self.health else self.state
        return f"{self.state} (exit code {self.exit_code})"


@dataclass(frozen=True)
class Network:
    """A network of the engine, of any project; `project` is empty for one that compose did not create."""

    id: str
    name: str
    project: str
    subnets: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answered."""

    api: Any  # docker.APIClient, which has no types

    @property
    def info(self) -> dict[str, Any]:
        """The output of `docker info`."""
        with _explained():
            information: dict[str, Any] = self.api.info()
        return information

    def time(self) -> float:
        """The engine's clock, in seconds since 1970."""
        with _explained():
            text = self.api.info()["SystemTime"]
        # Nanoseconds, which Python cannot read, and the engine's own time zone.
        return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text)).timestamp()

    def containers(self, project_name: str) -> list[Container]:
        """The stack's containers, by service; without temporary ones that a command started.

        Raises MlstackError when the engine stops answering.
        """
        return sorted(map(Container.of, self.inspected(project_name)), key=lambda container: container.service)

    def inspected(self, project_name: str) -> list[dict[str, Any]]:
        """The same containers, with all details."""
        with _explained():
            listed = self.api.containers(all=True, filters={"label": [f"{PROJECT_LABEL}={project_name}", HASH_LABEL]})
            ids = [container["Id"] for container in listed if container["Labels"].get(ONE_OFF_LABEL) != "True"]
            if not ids:
                return []
            with ThreadPoolExecutor(len(ids)) as pool:
                return [container for container in pool.map(self._inspected, ids) if container]

    def folders(self, project_name: str) -> set[str]:
        """The folders from which containers of this name were started, running or not."""
        with _explained():
            listed = self.api.containers(all=True, filters={"label": [f"{PROJECT_LABEL}={project_name}"]})
        return {container["Labels"][FOLDER_LABEL] for container in listed if container["Labels"].get(FOLDER_LABEL)}

    def published_ports(self, project_name: str | None = None) -> dict[int, str]:
        """The ports of the host that running containers hold, of one project or of all, with the container's name."""
        filters = {"label": f"{PROJECT_LABEL}={project_name}"} if project_name else {}
        with _explained():
            listed = self.api.containers(filters=filters)
        return {
            port["PublicPort"]: container["Names"][0].removeprefix("/")
            for container in listed
            for port in container["Ports"] or ()
            if "PublicPort" in port
        }

    def last_lines(self, container: Container, count: int) -> list[str]:
        """The last lines of a container's log, of both streams."""
        with _explained():
            written: bytes = self.api.logs(container.id, tail=count)
        return written.decode(errors="replace").splitlines()

    def volumes(self, project_name: str) -> list[str]:
        """Names of the volumes that hold a project's data."""
        with _explained():
            volumes = self.api.volumes(filters={"label": f"{PROJECT_LABEL}={project_name}"})["Volumes"]
        return sorted(volume["Name"] for volume in volumes or ())

    def volume_sizes(self) -> dict[str, int]:
        """Bytes of every volume that the engine can count. It counts them now, which may take long."""
        with _explained():
            volumes = self.api.df()["Volumes"]
        return {volume["Name"]: size for volume in volumes or () if (size := volume["UsageData"]["Size"]) >= 0}

    def run(self, container: Container, *command: str) -> str:
        """The output of a short command inside a running container. Raises MlstackError when it fails."""
        with _explained():
            started = self.api.exec_create(container.id, list(command), stderr=False)["Id"]
            output: str = self.api.exec_start(started).decode(errors="replace")
            code = self.api.exec_inspect(started)["ExitCode"]
        if code:
            raise MlstackError(
                f"{command[0]} failed in {container.name} with exit code {code}.",
                "The service could not be asked.",
                f"docker compose logs {container.service}",
            )
        return output

    def last_probe(self, container: Container) -> str:
        """The output of a container's last healthcheck, in one line."""
        with _explained():
            log = self.api.inspect_container(container.id)["State"].get("Health", {}).get("Log") or [{}]
        lines = log[-1].get("Output", "").strip().splitlines()
        return lines[-1] if lines else ""

    def has_newer_image(self, container: Container) -> bool:
        """Whether the name of the container's image now refers to another image."""
        with _explained():
            used = self.api.inspect_container(container.id)
            try:
                current: str = self.api.inspect_image(used["Config"]["Image"])["Id"]
            except ImageNotFound:
                return False
        return bool(current != used["Image"])

    def has_image(self, image: str) -> bool:
        """Whether an image of this name exists."""
        with _explained():
            try:
                self.api.inspect_image(image)
            except ImageNotFound:
                return False
        return True

    def tag(self, image: str, name: str, tag: str = "latest") -> None:
        """Gives an image another name."""
        with _explained():
            self.api.tag(image, name, tag, force=True)

    def user(self, image: str) -> str:
        """The user that an image runs as, from its Dockerfile; empty if it names none or the image does not exist."""
        with _explained():
            try:
                name: str = self.api.inspect_image(image)["Config"]["User"]
            except ImageNotFound:
                return ""
        return name

    def unused_images(self, project_name: str) -> list[dict[str, Any]]:
        """Untagged images of this project that no container uses."""
        with _explained():
            labels = [f"{PROJECT_LABEL}={project_name}"]
            untagged = self.api.images(filters={"dangling": True, "label": labels})
            used = {container["ImageID"] for container in self.api.containers(all=True)}
        return [image for image in untagged if image["Id"] not in used]

    def remove_image(self, image: str) -> None:
        """Removes a name of an image, or an image by its id. Raises MlstackError when a container uses it."""
        with _explained():
            try:
                self.api.remove_image(image)
            except ImageNotFound:
                return  # it was removed with a later one that was built on it

    def networks(self) -> list[Network]:
        """Every network of the engine. Raises MlstackError when the engine stops answering."""
        with _explained():
            listed = self.api.networks()
        return [
            Network(
                id=network["Id"],
                name=network["Name"],
                project=(network["Labels"] or {}).get(PROJECT_LABEL, ""),
                subnets=tuple(config["Subnet"] for config in network["IPAM"]["Config"] or () if config.get("Subnet")),
            )
            for network in listed
        ]

    def remove_network(self, network: Network) -> bool:
        """Removes a network unless a container is in it; returns whether it did."""
        try:
            with _explained():
                self.api.remove_network(network.id)
        except MlstackError:
            return False
        return True

    def _inspected(self, container_id: str) -> dict[str, Any] | None:
        try:
            details: dict[str, Any] = self.api.inspect_container(container_id)
        except NotFound:  # removed since it was listed
            return None
        return details


def connect(timeout: float = 10) -> Engine:
    """The engine that the docker command uses too. Raises MlstackError when it does not answer within `timeout` seconds."""
    if shutil.which("docker") is None:
        raise not_installed("docker")
    with _explained():
        where = docker.utils.kwargs_from_env() if settings.of_shell("DOCKER_HOST") else ContextAPI.kwargs_from_context()
        return Engine(docker.APIClient(version="auto", timeout=timeout, **where))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except APIError as error:
        raise MlstackError(
            f"the Docker engine answers with an error: {error.explanation or error}",
            "The stack could not be looked at.",
            "docker info",
        ) from error
    except (DockerException, requests.RequestException) as error:
        raise MlstackError(
            "the Docker engine does not answer.",
            "Everything here runs in containers; their data stays in the volumes.",
            "make up (it starts the engine, or says how); scripts/engine.sh check says what is wrong",
        ) from error


def _time(value: str) -> datetime | None:
    """Parses the engine's times, which have nanoseconds that Python cannot read, and the year 1 for never."""
    if value.startswith("0001"):
        return None
    return datetime.fromisoformat(value[:19]).replace(tzinfo=UTC)
