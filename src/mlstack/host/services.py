"""The services of the stack, read from the compose file: the only place for their ports, addresses, images and volumes.

What compose has no key for is in a service's labels (docs/adding-a-service.md): `mlstack.title` and `mlstack.login` for
`make urls`, `mlstack.url`, and `mlstack.loss.<volume>` for what is lost with a volume. They are read from the file, not from
containers: containers started by hand inherit labels from images.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mlstack.errors import MlstackError

FILE = "docker-compose.yml"
# The innermost of ${NAME}, ${NAME:?message}, ${NAME:-default} and ${NAME:+text}.
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?+])([^{}]*))?\}")
_PORT = re.compile(r"\$\{(\w+)[^}]*\}:(\d+)")
_LOSS = "mlstack.loss."
# The block that a service takes: it has no container while the variable is set.
_REPLACED = re.compile(r"\$\{(\w+):\+-replaced\}$")


@dataclass(frozen=True)
class Port:
    """A published port: the variable that chooses it on the host, and its number in the container."""

    variable: str
    inside: int


@dataclass(frozen=True)
class Volume:
    """A named volume, without the stack's name before it, and what is lost with it."""

    name: str
    loss: str


@dataclass(frozen=True)
class Service:
    """One service. `url` is empty without a page, `user` (a uid) if the image chooses it, `part` for the core.

    A service that `.env` replaces by an external one has no container and no port; its volume may hold older data.
    """

    name: str
    part: str
    is_external: bool
    is_long_running: bool
    title: str
    url: str
    login: str
    image: str
    image_variable: str
    is_built: bool  # here, and called after the service or the store that STORAGE chooses
    user: str
    ports: tuple[Port, ...]
    volumes: tuple[Volume, ...]
    writes_logs: bool

    @property
    def origin(self) -> str:
        """The URL without the page."""
        page = re.match(r"https?://[^/]+", self.url)
        return page[0] if page else self.url


@dataclass(frozen=True)
class Services:
    """Every service that this stack runs, in the order of the file."""

    by_name: Mapping[str, Service]

    @property
    def long_running(self) -> tuple[Service, ...]:
        """Those that are not one-shots."""
        return tuple(service for service in self.by_name.values() if service.is_long_running)

    @property
    def ports(self) -> tuple[str, ...]:
        """The variables of all published ports."""
        return tuple(port.variable for service in self.by_name.values() for port in service.ports)

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """Every named volume, once: the first service that has it says what is lost with it."""
        by_name: dict[str, Volume] = {}
        for service in self.by_name.values():
            for volume in service.volumes:
                by_name.setdefault(volume.name, volume)
        return tuple(by_name.values())

    @property
    def with_image(self) -> tuple[Service, ...]:
        """Those whose name an image has; the one-shots use MLflow's."""
        return tuple(service for service in self.by_name.values() if service.is_built)

    @property
    def writers(self) -> tuple[Service, ...]:
        """Those that write to the stack's database: of MLflow's image, and the scoring service, which logs decisions."""
        images = ("MLFLOW_IMAGE", "SCORING_IMAGE")
        return tuple(service for service in self.by_name.values() if service.image_variable in images)

    @property
    def logging(self) -> tuple[str, ...]:
        """The names of those that write log files, each in LOG_DIR/<service>."""
        return tuple(service.name for service in self.by_name.values() if service.writes_logs)


def read(folder: Path, values: Mapping[str, str]) -> Services:
    """The services of a project with these settings: the core's, and those of the parts that COMPOSE_PROFILES names.

    Raises MlstackError when a compose file cannot be read.
    """
    wanted = {"", *enabled(values)}
    return Services({name: service for name, service in _all(folder, values).items() if wanted & {service.part, "*"}})


def parts(folder: Path) -> tuple[str, ...]:
    """The optional parts of a project, each with services of its own. Raises as `read` does."""
    return tuple(dict.fromkeys(service.part for service in _all(folder, {}).values() if service.part))


def of_part(folder: Path, part: str) -> tuple[Service, ...]:
    """The services of an optional part, on or off."""
    return tuple(service for service in _all(folder, {}).values() if service.part == part)


def enabled(values: Mapping[str, str]) -> tuple[str, ...]:
    """The parts that are switched on, as compose reads them."""
    return tuple(name for name in values.get("COMPOSE_PROFILES", "").split(",") if name)


def _all(folder: Path, values: Mapping[str, str]) -> dict[str, Service]:
    return {
        name: _service(name, _extended(folder, text, values), values)
        for file in _files(folder)
        for name, text in file.get("services", {}).items()
    }


def _files(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The compose file and those that it includes."""
    main = _loaded(folder / FILE)
    yield main
    for included in main.get("include", ()):
        yield _loaded(folder / included["path"])


def _extended(folder: Path, text: Mapping[str, Any], values: Mapping[str, str]) -> Mapping[str, Any]:
    """A service with the block that it extends, which a variable chooses."""
    if "extends" not in text:
        return text
    chosen = _filled(text["extends"]["service"], values)
    block = _loaded(folder / text["extends"]["file"])["services"].get(chosen, {})
    return {**block, **text}


@lru_cache
def _parsed(text: bytes) -> Mapping[str, Any]:
    content: Mapping[str, Any] = yaml.load(text, yaml.CSafeLoader)  # the safe loader, in C: 5 ms instead of 100
    return content


def _loaded(path: Path) -> Mapping[str, Any]:
    try:
        return _parsed(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise MlstackError(
            f"{path} cannot be read: {' '.join(str(error).split())}",
            "It says which services, ports and volumes the stack has.",
            f"fix {path.name} (git diff shows what was changed)",
        ) from error


def _service(name: str, text: Mapping[str, Any], values: Mapping[str, str]) -> Service:
    labels = text.get("labels", {})
    image = text.get("image", "")
    variable = re.match(r"\$\{(\w+):-", image)
    replaced = _REPLACED.search(text.get("extends", {}).get("service", ""))
    is_external = bool(replaced and values.get(replaced[1]))
    ports = () if is_external else text.get("ports", ())
    mounts = text.get("volumes", ())
    named = [mount.partition(":")[0] for mount in mounts if isinstance(mount, str)]
    return Service(
        name=name,
        part=next(iter(text.get("profiles", ())), ""),
        is_external=is_external,
        is_long_running="restart" in text and not is_external,
        title=labels.get("mlstack.title", name),
        url=_filled(labels.get("mlstack.url", ""), values),
        login=labels.get("mlstack.login", ""),
        image=_filled(image, values),
        image_variable=variable[1] if variable else "",
        is_built="build" in text and image.endswith((f"}}-{name}}}", f"}}-{values.get('STORAGE', name)}}}")),
        user=_filled(text.get("user", ""), values).partition(":")[0],
        ports=tuple(Port(variable, int(inside)) for port in ports for variable, inside in _PORT.findall(port)),
        volumes=tuple(Volume(volume, labels.get(f"{_LOSS}{volume}", "its data")) for volume in named),
        writes_logs=any(not isinstance(mount, str) and mount["target"] == "/logs" for mount in mounts),
    )


def _filled(text: str, values: Mapping[str, str]) -> str:
    """A text of the compose file with its variables substituted as compose does; a variable may be in another's default."""

    def value(match: re.Match[str]) -> str:
        name, kind, other = match.groups()
        if kind == "+":
            return other if values.get(name) else ""
        return values.get(name) or (other if kind == "-" else "")

    return _VARIABLE.sub(value, _VARIABLE.sub(value, text))
