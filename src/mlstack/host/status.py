"""`make status`: the whole stack on one screen, in less than two seconds, whatever state it is in.

Every source is queried at the same time and has a short deadline; without an answer its value is unknown, never old.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import urljoin

import psycopg2

from mlstack import settings
from mlstack.errors import MlstackError, quoted
from mlstack.host import http
from mlstack.host.backup import manifest
from mlstack.host.engine import Container, Engine, Mount
from mlstack.host.services import Services
from mlstack.host.stack import Stack
from mlstack.settings import Account

# Seconds for each answer. Sizes are counted for a little less, so that a partial size can be reported.
PATIENCE, COUNTING = 0.8, 0.5
OK = 200

_MEMORY = """\
cat /sys/fs/cgroup/memory.current 2>/dev/null || cat /sys/fs/cgroup/memory/memory.usage_in_bytes
cat /sys/fs/cgroup/memory.stat 2>/dev/null || cat /sys/fs/cgroup/memory/memory.stat"""
# Prints the bytes counted, and 0 if the count is complete.
_SIZE = """\
{ timeout "$2" find "$1" -type f -printf '%b\\n' 2>/dev/null; echo "ended $?"; } |
awk '/^ended/ { code = $2; next } { blocks += $1 } END { printf "%.0f %d\\n", blocks * 512, code == 124 }'"""


@dataclass(frozen=True)
class Service:
    """A service: its container's state and health in Docker's words, uptime in seconds, memory in bytes."""

    name: str
    state: str
    health: str
    is_healthy: bool
    uptime: int | None = None
    memory: int | None = None
    memory_limit: int | None = None
    version: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class Volume:
    """A volume and its size in bytes; `is_complete` is False if counting was stopped."""

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
    """What `make status` shows. `problem` says why the engine did not answer, if so."""

    project: str
    problem: str | None
    services: tuple[Service, ...]
    volumes: tuple[Volume, ...]
    schema: str | None
    schema_is_of: str | None
    backup: Backup | None

    @property
    def is_healthy(self) -> bool:
        return self.problem is None and all(service.is_healthy for service in self.services)

    @property
    def is_down(self) -> bool:
        """Whether nothing of the stack is running."""
        return not any(service.state == "running" for service in self.services)

    def as_json(self) -> str:
        return json.dumps({"is_healthy": self.is_healthy, **asdict(self)}, indent=2)


def status(stack: Stack) -> Status:
    """The state of a stack. Raises MlstackError when `.env` or the last backup's manifest cannot be read."""
    settings.read("COMPOSE_PROJECT_NAME", "POSTGRES_DB", *stack.services.ports, values=stack.values)
    backup = last_backup(stack)
    try:
        containers = stack.engine.containers(stack.name)
    except MlstackError as error:
        unknown = tuple(Service(service.name, "unknown", "", is_healthy=False) for service in stack.services.long_running)
        return Status(stack.name, error.wrong, unknown, (), None, None, backup)
    answers = _ask(_questions(stack, containers))
    volumes = {mount.volume: mount for container in containers for mount in container.mounts}
    schema, made_by, server = answers.get("database") or (None, None, None)
    # Each service says its own version, where it can, and otherwise its image does: asking MinIO takes longer than a moment.
    of_image = {container.service: container.version.partition("T")[0] for container in containers}
    versions = of_image | {"mlflow": answers.get("version mlflow"), "jupyter": answers.get("version jupyter"), "postgres": server}
    return Status(
        project=stack.name,
        problem=None,
        services=(
            *_external(stack, answers | {"external postgres": server}),
            *(_service(container, stack.services, answers, versions) for container in _expected(stack.services, containers)),
        ),
        volumes=tuple(Volume(volume, *(answers.get(f"size {volume}") or (None, False))) for volume in sorted(volumes)),
        schema=schema and quoted(schema),
        schema_is_of=made_by and quoted(made_by),
        backup=backup,
    )


def last_backup(stack: Stack) -> Backup | None:
    """The newest complete backup. Raises MlstackError when its manifest cannot be read."""
    for folder in manifest.folders(stack.backups)[:1]:
        contents = manifest.read_manifest(folder)
        age = int((datetime.now(UTC) - contents.time).total_seconds())
        place = folder.relative_to(stack.folder) if folder.is_relative_to(stack.folder) else folder
        return Backup(str(place), contents.time.astimezone(UTC).isoformat(), contents.bytes, age)
    return None


# ---- sources ------------------------------------------------------------------------------------


def _questions(stack: Stack, containers: Sequence[Container]) -> dict[str, Callable[[], Any]]:
    running = {container.service: container for container in containers if container.is_running}
    questions: dict[str, Callable[[], Any]] = {
        f"memory {container.name}": partial(memory, stack.engine, container) for container in containers if container.is_running
    }
    for container in containers:
        for mount in container.mounts:
            if os.access(mount.source, os.R_OK | os.X_OK):  # a local engine, and its user: much faster
                questions[f"size {mount.volume}"] = partial(_size_here, mount)
            elif container.is_running:
                questions[f"size {mount.volume}"] = partial(_size_inside, stack.engine, container, mount)
    if "postgres" in running or stack.services.by_name["postgres"].is_external:
        questions["database"] = partial(_database, stack)
    if stack.services.by_name["minio"].is_external:
        questions["external minio"] = partial(_store, stack)
    if "mlflow" in running:
        account = settings.notebook_account(stack.values)
        questions["version mlflow"] = partial(_page, stack, "mlflow", "/version", account)
    if "jupyter" in running:
        questions["version jupyter"] = lambda: json.loads(_page(stack, "jupyter", "/api"))["version"]
    return questions


def _ask(questions: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The answers within PATIENCE. A thread that hangs does not keep the command from ending."""
    answers: dict[str, Any] = {}

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except (MlstackError, psycopg2.Error, OSError, ValueError, KeyError):
            return  # unknown, and shown as such: a starting service fails in many ways

    threads = [threading.Thread(target=ask, args=question, daemon=True) for question in questions.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    return dict(answers)


def memory(docker: Engine, container: Container) -> int:
    """Bytes as `docker stats` counts them, which takes two seconds: used memory without the file cache that can be evicted.

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


def _database(stack: Stack) -> tuple[str, str | None, str]:
    """The schema's revision, its MLflow version, and the server's version, read with MLflow's own login."""
    login = stack.tracking
    connection = psycopg2.connect(**login.parameters)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT version_num, obj_description('alembic_version'::regclass, 'pg_class') FROM alembic_version")
            revision, made_by = cursor.fetchone() or ("none", None)
        server = str(connection.info.parameter_status("server_version")).split()[0]
    finally:
        connection.close()
    return revision, made_by, server


def _store(stack: Stack) -> bool:
    """Whether an external S3 store answers, with whatever status. Raises MlstackError otherwise."""
    keys = stack.keys
    http.call("S3", "HEAD", keys.url, why="MLflow keeps artifacts there.", timeout=PATIENCE, authorities=keys.authorities)
    return True


def _page(stack: Stack, service: str, path: str, account: Account | None = None) -> str:
    url = urljoin(stack.services.by_name[service].url, path)
    answer = http.call(service, "GET", url, why="It says its version there.", timeout=PATIENCE, account=account)
    if answer.status != OK:
        raise ValueError(f"{url} answers {answer.status}")
    return answer.data.decode().strip()


# ---- what they make together ----------------------------------------------------------------------


def _expected(services: Services, containers: Sequence[Container]) -> list[Container | str]:
    """Every container, and the names of long-running services that have none."""
    existing = {container.service for container in containers}
    return [*(service.name for service in services.long_running if service.name not in existing), *containers]


def _external(stack: Stack, answers: Mapping[str, Any]) -> Iterator[Service]:
    """Services outside the stack: healthy if they answered."""
    addresses = {"postgres": lambda: f"{stack.tracking.host}:{stack.tracking.port}", "minio": lambda: stack.keys.url}
    for name, described in stack.services.by_name.items():
        if described.is_external:
            answer = answers.get(f"external {name}")
            state = "external" if answer else "external, no answer"
            version = quoted(answer) if answer and name == "postgres" else None
            yield Service(name, state, "", is_healthy=bool(answer), version=version, url=addresses[name]())


def _service(
    container: Container | str, services: Services, answers: Mapping[str, Any], versions: Mapping[str, str | None]
) -> Service:
    if isinstance(container, str):
        return Service(container, "missing", "", is_healthy=False)
    described = services.by_name.get(container.service)
    is_long_running = described is not None and described.is_long_running
    uptime = int((datetime.now(UTC) - container.started).total_seconds()) if container.started and container.is_running else None
    return Service(
        name=container.service,
        state="done" if container.is_healthy and not container.is_running and not is_long_running else container.state,
        health=container.health if container.is_running else "",
        is_healthy=container.is_healthy and (container.is_running or not is_long_running),
        uptime=uptime,
        memory=answers.get(f"memory {container.name}"),
        memory_limit=container.memory_limit,
        version=(quoted(versions.get(container.service) or "") or None) if is_long_running else None,
        url=described.origin or None if described and container.is_running else None,
    )
