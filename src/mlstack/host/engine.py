"""The Docker engine's own interface, for what its command line is too slow for or does not tell."""

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

# Compose's labels on what it makes: the stack's name, and the folder that it was started from.
PROJECT_LABEL, FOLDER_LABEL = "com.docker.compose.project", "com.docker.compose.project.working_dir"
SERVICE_LABEL = "com.docker.compose.service"
# Images that compose builds hand the other labels on to whatever is started from them by hand; this one only compose writes.
HASH_LABEL = "com.docker.compose.config-hash"
ONE_OFF_LABEL = "com.docker.compose.oneoff"
VERSION_LABEL = "org.opencontainers.image.version"


@dataclass(frozen=True)
class Mount:
    """A volume in a container: its name, where it is inside, where the engine keeps it."""

    volume: str
    target: str
    source: str


@dataclass(frozen=True)
class Container:
    """One container of the stack, running or not. `version` is what its image says, empty if it says nothing.

    `started` is None before the first start, `memory_limit` (bytes) where there is none.
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
            addresses=frozenset(f"{each['HostIp']}:{each['HostPort']}" for several in bindings for each in several or ()),
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
    def is_well(self) -> bool:
        """Running and, where it has a healthcheck, healthy; or a one-shot that did its work."""
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
    """A network of the engine, of any project; `project` is empty for one that compose did not make."""

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
        """What `docker info` says."""
        with _explained():
            found: dict[str, Any] = self.api.info()
        return found

    def time(self) -> float:
        """The engine's clock, in seconds since 1970."""
        with _explained():
            found = self.api.info()["SystemTime"]
        # Nanoseconds, which Python cannot read, and the engine's own time zone.
        return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", found)).timestamp()

    def containers(self, project_name: str) -> list[Container]:
        """The stack's containers, by service; none that a command started beside it for a moment.

        Raises MlstackError when the engine stops answering.
        """
        return sorted(map(Container.of, self.inspected(project_name)), key=lambda container: container.service)

    def inspected(self, project_name: str) -> list[dict[str, Any]]:
        """The same containers, in all that the engine says of them."""
        with _explained():
            listed = self.api.containers(all=True, filters={"label": [f"{PROJECT_LABEL}={project_name}", HASH_LABEL]})
            ids = [each["Id"] for each in listed if each["Labels"].get(ONE_OFF_LABEL) != "True"]
            if not ids:
                return []
            with ThreadPoolExecutor(len(ids)) as pool:
                return [container for container in pool.map(self._inspected, ids) if container]

    def folders(self, project_name: str) -> set[str]:
        """The folders from which containers of this name were started, running or not."""
        with _explained():
            listed = self.api.containers(all=True, filters={"label": [f"{PROJECT_LABEL}={project_name}"]})
        return {each["Labels"][FOLDER_LABEL] for each in listed if each["Labels"].get(FOLDER_LABEL)}

    def published_ports(self, project_name: str | None = None) -> dict[int, str]:
        """The ports of the host that running containers hold, of one project or of all, with the container's name."""
        filters = {"label": f"{PROJECT_LABEL}={project_name}"} if project_name else {}
        with _explained():
            listed = self.api.containers(filters=filters)
        return {
            port["PublicPort"]: each["Names"][0].removeprefix("/")
            for each in listed
            for port in each["Ports"] or ()
            if "PublicPort" in port
        }

    def last_lines(self, container: Container, count: int) -> list[str]:
        """The end of what a container wrote, on either stream."""
        with _explained():
            written: bytes = self.api.logs(container.id, tail=count)
        return written.decode(errors="replace").splitlines()

    def volumes(self, project_name: str) -> list[str]:
        """Names of the volumes that hold a project's data."""
        with _explained():
            found = self.api.volumes(filters={"label": f"{PROJECT_LABEL}={project_name}"})["Volumes"]
        return sorted(volume["Name"] for volume in found or ())

    def volume_sizes(self) -> dict[str, int]:
        """Bytes of every volume that the engine can count, which it does now: that may take long."""
        with _explained():
            found = self.api.df()["Volumes"]
        return {volume["Name"]: size for volume in found or () if (size := volume["UsageData"]["Size"]) >= 0}

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
        """What a container's last healthcheck said, in one line."""
        with _explained():
            log = self.api.inspect_container(container.id)["State"].get("Health", {}).get("Log") or [{}]
        lines = log[-1].get("Output", "").strip().splitlines()
        return lines[-1] if lines else ""

    def has_newer_image(self, container: Container) -> bool:
        """Whether the name of the container's image means another image by now."""
        with _explained():
            used = self.api.inspect_container(container.id)
            try:
                current: str = self.api.inspect_image(used["Config"]["Image"])["Id"]
            except ImageNotFound:
                return False
        return bool(current != used["Image"])

    def has_image(self, image: str) -> bool:
        """Whether there is an image of this name."""
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
        """The user that an image runs as, as its Dockerfile names it; empty where it names none or there is no such image."""
        with _explained():
            try:
                found: str = self.api.inspect_image(image)["Config"]["User"]
            except ImageNotFound:
                return ""
        return found

    def unused_images(self, project_name: str) -> list[dict[str, Any]]:
        """Images that were built for this project, have lost their name to a newer one, and no container was made from."""
        with _explained():
            labels = [f"{PROJECT_LABEL}={project_name}"]
            found = self.api.images(filters={"dangling": True, "label": labels})
            used = {each["ImageID"] for each in self.api.containers(all=True)}
        return [image for image in found if image["Id"] not in used]

    def remove_image(self, image: str) -> None:
        """Removes a name of an image, or an image by its id. Raises MlstackError when a container uses it."""
        with _explained():
            try:
                self.api.remove_image(image)
            except ImageNotFound:
                return  # it went with a later one that was built on it

    def networks(self) -> list[Network]:
        """Every network of the engine. Raises MlstackError when the engine stops answering."""
        with _explained():
            listed = self.api.networks()
        return [
            Network(
                id=each["Id"],
                name=each["Name"],
                project=(each["Labels"] or {}).get(PROJECT_LABEL, ""),
                subnets=tuple(config["Subnet"] for config in each["IPAM"]["Config"] or () if config.get("Subnet")),
            )
            for each in listed
        ]

    def remove_network(self, network: Network) -> bool:
        """Removes a network unless a container is in it; says whether it did."""
        try:
            with _explained():
                self.api.remove_network(network.id)
        except MlstackError:
            return False
        return True

    def _inspected(self, container_id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.api.inspect_container(container_id)
        except NotFound:  # removed since it was listed
            return None
        return found


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
            f"the Docker engine refuses: {error.explanation or error}", "The stack could not be looked at.", "docker info"
        ) from error
    except (DockerException, requests.RequestException) as error:
        raise MlstackError(
            "the Docker engine does not answer.",
            "Everything here runs in containers; their data stays in the volumes.",
            "make up (it starts the engine, or says how); scripts/engine.sh check says what is wrong",
        ) from error


def _time(value: str) -> datetime | None:
    """The engine's times have nanoseconds, which Python cannot read, and the year 1 for never."""
    if value.startswith("0001"):
        return None
    return datetime.fromisoformat(value[:19]).replace(tzinfo=UTC)
