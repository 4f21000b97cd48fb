"""`make status`: the whole stack on one screen, in less than two seconds, whatever state it is in.

Every source is asked at once and has a moment to answer; what does not answer is unknown, never an old value.
"""

import base64
import json
import os
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2

from mlstack import settings
from mlstack.errors import MlstackError, quoted
from mlstack.host import engine
from mlstack.host.backup.manifest import opened
from mlstack.host.engine import Container, Engine, Mount
from mlstack.host.preflight import PORTS

# Seconds that a source has to answer. Sizes are counted for a little less, so that they can say how far they got.
PATIENCE, COUNTING = 0.8, 0.5
BACKUP_NAME = "%Y%m%dT%H%M%SZ"
MANIFEST_BYTES = 16 * 1024 * 1024  # of which there are a few thousand in a manifest that mlstack wrote

# Where each long-running service is found on this machine, and where it says its version if it does so over HTTP.
ADDRESSES: Mapping[str, str] = {
    "jupyter": "http://127.0.0.1:{JUPYTER_PORT}",
    "mlflow": "http://127.0.0.1:{MLFLOW_PORT}",
    "minio": "http://127.0.0.1:{MINIO_CONSOLE_PORT}",
    "postgres": "127.0.0.1:{POSTGRES_PORT}/{POSTGRES_DB}",
}

_MEMORY = """\
cat /sys/fs/cgroup/memory.current 2>/dev/null || cat /sys/fs/cgroup/memory/memory.usage_in_bytes
cat /sys/fs/cgroup/memory.stat 2>/dev/null || cat /sys/fs/cgroup/memory/memory.stat"""
# Prints the bytes counted so far, and 0 if that was all.
_SIZE = """\
{ timeout "$2" find "$1" -type f -printf '%b\\n' 2>/dev/null; echo "ended $?"; } |
awk '/^ended/ { code = $2; next } { blocks += $1 } END { printf "%.0f %d\\n", blocks * 512, code == 124 }'"""


@dataclass(frozen=True)
class Service:
    """A service: its container's state and health in Docker's words, uptime in seconds, memory in bytes."""

    name: str
    state: str
    health: str
    is_well: bool
    uptime: int | None = None
    memory: int | None = None
    memory_limit: int | None = None
    version: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Volume:
    """A volume and its size in bytes; `is_complete` is False where counting had to stop before the end."""

    name: str
    size: int | None
    is_complete: bool


@dataclass(frozen=True)
class Backup:
    """The last complete backup: its folder, when it was made (UTC), its size in bytes and its age in seconds."""

    folder: str
    created: str
    size: int
    age: int


@dataclass(frozen=True)
class Status:
    """What `make status` shows. `problem` says why the engine could not be asked, if so."""

    project: str
    problem: str | None
    services: tuple[Service, ...]
    volumes: tuple[Volume, ...]
    schema: str | None
    schema_is_of: str | None
    backup: Backup | None

    @property
    def is_well(self) -> bool:
        return self.problem is None and all(service.is_well for service in self.services)

    @property
    def is_down(self) -> bool:
        """Nothing of the stack is running."""
        return not any(service.state == "running" for service in self.services)

    def as_json(self) -> str:
        return json.dumps({"is_well": self.is_well, **asdict(self)}, indent=2)


def status(project: Path) -> Status:
    """The state of the stack. Raises MlstackError when `.env` or the last backup's manifest cannot be read."""
    values = settings.of_project(project)
    settings.read("COMPOSE_PROJECT_NAME", "POSTGRES_DB", *PORTS, values=values)
    name = values["COMPOSE_PROJECT_NAME"]
    backup = last_backup(project)
    try:
        docker = engine.connect(timeout=PATIENCE)
        containers = docker.containers(name)
    except MlstackError as error:
        unknown = tuple(Service(service, "unknown", "", is_well=False) for service in ADDRESSES)
        return Status(name, error.wrong, unknown, (), None, None, backup)
    running = {container.service: container for container in containers if container.is_running}
    answers = _ask(_questions(docker, values, running, containers))
    volumes = {mount.volume: mount for container in containers for mount in container.mounts}
    schema, made_by, server = answers.get("database") or (None, None, None)
    # Each service says its own version, except MinIO: asking it takes longer than a moment, and its image says it.
    of_image = {container.service: container.version.partition("T")[0] for container in containers}
    versions = {service: answers.get(f"version {service}") for service in ADDRESSES}
    versions |= {"postgres": server, "minio": of_image.get("minio")}
    return Status(
        project=name,
        problem=None,
        services=tuple(_service(container, values, answers, versions) for container in _expected(containers)),
        volumes=tuple(Volume(volume, *(answers.get(f"size {volume}") or (None, False))) for volume in sorted(volumes)),
        schema=schema and quoted(schema),
        schema_is_of=made_by and quoted(made_by),
        backup=backup,
    )


def last_backup(project: Path) -> Backup | None:
    """The newest complete backup. Raises MlstackError when a manifest cannot be read."""
    for folder in sorted(settings.backup_dir(project).glob("*/manifest.json"), reverse=True):
        if not _is_backup_name(folder.parent.name):
            continue
        try:
            with opened(folder.parent, folder.name) as file:
                manifest = json.loads(file.read(MANIFEST_BYTES))
            created = datetime.fromisoformat(manifest["created"]).astimezone(UTC)
            size = int(manifest["bytes"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MlstackError(
                f"the manifest of the last backup cannot be read: {error}.",
                "It says what the backup holds.",
                f"look at {folder}, or make backup",
            ) from error
        age = int((datetime.now(UTC) - created).total_seconds())
        place = folder.parent.relative_to(project) if folder.is_relative_to(project) else folder.parent
        return Backup(str(place), created.isoformat(), size, age)
    return None


def _is_backup_name(name: str) -> bool:
    try:
        datetime.strptime(name, BACKUP_NAME)  # only the shape matters
    except ValueError:
        return False
    return True


# ---- sources ------------------------------------------------------------------------------------


def _questions(
    docker: Engine, values: Mapping[str, str], running: Mapping[str, Container], containers: Sequence[Container]
) -> dict[str, Callable[[], Any]]:
    questions: dict[str, Callable[[], Any]] = {
        f"memory {service}": partial(memory, docker, container) for service, container in running.items()
    }
    for container in containers:
        for mount in container.mounts:
            if os.access(mount.source, os.R_OK | os.X_OK):  # an engine of this machine, and its owner: much faster
                questions[f"size {mount.volume}"] = partial(_size_here, mount)
            elif container.is_running:
                questions[f"size {mount.volume}"] = partial(_size_inside, docker, container, mount)
    if "postgres" in running:
        questions["database"] = partial(_database, values)
    if "mlflow" in running:
        account = f"{values.get('MLFLOW_TRACKING_USERNAME')}:{values.get('MLFLOW_TRACKING_PASSWORD')}"
        questions["version mlflow"] = partial(_http, ADDRESSES["mlflow"].format_map(values) + "/version", account)
    if "jupyter" in running:
        questions["version jupyter"] = lambda: json.loads(_http(ADDRESSES["jupyter"].format_map(values) + "/api"))["version"]
    return questions


def _ask(questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The answers that come within PATIENCE. Whatever hangs is left behind: its thread does not keep the command."""
    answers: dict[str, Any] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except (MlstackError, psycopg2.Error, OSError, ValueError, KeyError):
            return  # unknown, and shown as such: a service that is half up refuses in many ways

    threads = [threading.Thread(target=ask, args=question, daemon=True) for question in questions.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(answers)


def memory(docker: Engine, container: Container) -> int:
    """Bytes as `docker stats` counts them, which needs two seconds: what is used, without files that could be dropped at once.

    Raises MlstackError when the container does not answer.
    """
    used, *lines = docker.run(container, "sh", "-c", _MEMORY).splitlines()
    details = dict(line.split() for line in lines)
    return int(used) - int(details.get("total_inactive_file", details.get("inactive_file", 0)))


def _size_inside(docker: Engine, container: Container, mount: Mount) -> tuple[int, bool]:
    return _counted(docker.run(container, "sh", "-c", _SIZE, "sh", mount.target, str(COUNTING)))


def _size_here(mount: Mount) -> tuple[int, bool]:
    command = ["sh", "-c", _SIZE, "sh", mount.source, str(COUNTING)]
    return _counted(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _counted(output: str) -> tuple[int, bool]:
    size, was_cut_short = output.split()
    return int(size), was_cut_short == "0"


def _database(values: Mapping[str, str]) -> tuple[str, str | None, str]:
    """The schema's revision, who made it, and the server's version, with MLflow's own login."""
    login = settings.tracking_login(values)
    connection = psycopg2.connect(
        host="127.0.0.1", port=values["POSTGRES_PORT"], user=login.user, password=login.password, dbname=login.database
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT version_num, obj_description('alembic_version'::regclass, 'pg_class') FROM alembic_version")
            revision, made_by = cursor.fetchone() or ("none", None)
        server = str(connection.info.parameter_status("server_version")).split()[0]
    finally:
        connection.close()
    return revision, made_by, server


def _http(url: str, account: str = "") -> str:
    request = urllib.request.Request(url)  # noqa: S310 # http on this machine
    if account:
        request.add_header("Authorization", "Basic " + base64.b64encode(account.encode()).decode())
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        text: str = answer.read().decode()
    return text.strip()


# ---- what they make together ----------------------------------------------------------------------


def _expected(containers: Sequence[Container]) -> list[Container | str]:
    """Every container, and the names of long-running services that have none."""
    there = {container.service for container in containers}
    return [*(name for name in ADDRESSES if name not in there), *containers]


def _service(
    container: Container | str, values: Mapping[str, str], answers: Mapping[str, Any], versions: Mapping[str, str | None]
) -> Service:
    if isinstance(container, str):
        return Service(container, "missing", "", is_well=False)
    is_long_running = container.service in ADDRESSES
    uptime = int((datetime.now(UTC) - container.started).total_seconds()) if container.started and container.is_running else None
    return Service(
        name=container.service,
        state="done" if container.is_well and not container.is_running and not is_long_running else container.state,
        health=container.health if container.is_running else "",
        is_well=container.is_well and (container.is_running or not is_long_running),
        uptime=uptime,
        memory=answers.get(f"memory {container.service}"),
        memory_limit=container.memory_limit,
        version=quoted(versions.get(container.service) or "") or None,
        url=ADDRESSES[container.service].format_map(values) if is_long_running and container.is_running else None,
    )
