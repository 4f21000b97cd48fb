"""Checks on the host that change nothing: whether the stack could start here."""

import shutil
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from mlstack import postgres, settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, services
from mlstack.host.engine import Engine
from mlstack.host.stack import Stack

GIB = 1024**3
PATIENCE = 10  # seconds
MIN_MEMORY_GIB = 4
# Images and build cache of a first build; afterwards the space for a day's work.
MIN_DISK_GIB_TO_BUILD, MIN_DISK_GIB = 10, 2


def check(stack: Stack, *, will_build: bool) -> list[MlstackError]:
    """Everything that would prevent a start; empty if nothing would."""
    if wrong := check_env(stack):
        return wrong  # the other checks need its values
    if env_file.is_being_rotated(stack.folder):
        return [
            MlstackError(
                "a rotation of the secrets was interrupted.",
                "Some services may know the new ones of .env.next already, others the old ones of .env.",
                "make rotate resumes where it ended",
            )
        ]
    expected_disk = MIN_DISK_GIB_TO_BUILD if will_build else MIN_DISK_GIB
    problems = (*check_ports(stack), check_memory(stack.engine), check_disk(stack, expected_disk))
    problems += (check_postgres(stack), check_s3(stack))
    return [problem for problem in problems if problem]


def check_env(stack: Stack) -> list[MlstackError]:
    """Everything that is wrong with `.env`."""
    why = "The stack would not start, or not as you mean it."
    wrong = [
        MlstackError(f"{problem}.", why, "edit .env (.env.example explains each key)")
        for problem in env_file.problems(stack.env, stack.values)
    ]
    return wrong or [*_unknown_parts(stack), *_folders_in_reach(stack)]


def _unknown_parts(stack: Stack) -> list[MlstackError]:
    known = services.parts(stack.folder)
    return [
        MlstackError(
            f"COMPOSE_PROFILES in .env names {part}, which is no part of this stack.",
            "docker compose would ignore it.",
            f"name parts of this list: {', '.join(known)}; or none",
        )
        for part in services.enabled(stack.values)
        if part not in (*known, "*")
    ]


def _folders_in_reach(stack: Stack) -> list[MlstackError]:
    """Reports host folders that are inside a folder that a container writes in."""
    logs = stack.logs.resolve()
    mounted = [(stack.folder / "notebooks").resolve(), *(logs / name for name in stack.services.logging)]
    places = {"LOG_DIR": logs, "BACKUP_DIR": stack.backups.resolve()}
    return [
        MlstackError(
            f"{name}={stack.values[name]} is inside {folder}, where a container writes.",
            "A package in a notebook could choose which files the host's commands write to.",
            f"set {name} in .env to another folder",
        )
        for name, place in places.items()
        for folder in mounted
        if place.is_relative_to(folder)
    ]


def warnings(stack: Stack) -> list[str]:
    """What is allowed but probably not intended."""
    return [
        *(f".env has a key that nothing reads: {name}" for name in env_file.unknown_keys(stack.env)),
        *(f"{name} comes from your shell, not from .env, and they differ" for name in settings.shadowed(stack.env)),
        *_open_mlflow(stack.values),
        *_unencrypted(stack.values),
    ]


def _unencrypted(values: Mapping[str, str]) -> list[str]:
    named = [name for name in ("EXTERNAL_S3", "EXTERNAL_S3_PUBLIC") if values.get(name, "").startswith("http://")]
    postgres_is_open = values.get("EXTERNAL_POSTGRES") and values.get("EXTERNAL_POSTGRES_TLS") == "disable"
    return [
        f"{name}: what is sent there is not encrypted, and anyone on the way may read and change it"
        for name in (*named, *(["EXTERNAL_POSTGRES_TLS=disable"] if postgres_is_open else []))
    ]


def _open_mlflow(values: Mapping[str, str]) -> list[str]:
    if values.get("MLFLOW_AUTH") != "off":
        return []
    return [
        f"MLFLOW_AUTH=off: any program on the host may read, change and delete what is in MLflow, through port"
        f" {values.get('MLFLOW_PORT')}, and, without the origin check, so may any page in your browser"
    ]


def check_postgres(stack: Stack) -> MlstackError | None:
    """Why an external Postgres cannot be used, if so."""
    if not stack.tracking.is_external:
        return None
    login = replace(stack.owner, database="postgres") if stack.has_administrator else stack.tracking
    try:
        with postgres.connected(login, PATIENCE) as connection:
            postgres.require_supported(connection)
    except MlstackError as error:
        return error
    return None


def check_s3(stack: Stack) -> MlstackError | None:
    """Why an external S3 store cannot be used, if so."""
    if not settings.is_external_s3(stack.values):
        return None
    from mlstack import s3  # not for the commands without it

    try:
        s3.wait_for_external(stack.keys, PATIENCE)
    except MlstackError as error:
        return error
    return None


def left_behind(stack: Stack) -> list[str]:
    """A warning when STORAGE has changed and no object was moved: MLflow would find none of its artifacts."""
    volumes = stack.engine.volumes(stack.name)
    others = [store for store in settings.STORES if store != stack.storage and f"{stack.name}_{store}" in volumes]
    if not others or f"{stack.name}_{stack.storage}" in volumes or settings.is_external_s3(stack.values):
        return []
    return [
        f"STORAGE={stack.storage} has no volume yet, and {others[0]} has one: artifacts and data sets are there."
        f" STORAGE={others[0]} in .env shows them again, and make storage TO={stack.storage} moves them (docs/storage.md)"
    ]


def check_ports(stack: Stack) -> list[MlstackError]:
    """Every port that is in use, with its holder."""
    ours = stack.engine.published_ports(stack.name)
    problems = []
    names_of: dict[int, str] = {}
    for name in stack.services.ports:
        port = stack.port(name)
        if port in names_of:
            problems.append(_port_problem(name, port, f"by {names_of[port]} too"))
        elif port not in ours and not _is_free(port):
            problems.append(_port_problem(name, port, f"by {_holder(stack.engine, port)}"))
        names_of[port] = name
    return problems


def _port_problem(name: str, port: int, holder: str) -> MlstackError:
    return MlstackError(f"port {port} is used {holder}.", f"{name} needs it.", f"stop that, or set {name} in .env to a free port")


def free_ports(count: int) -> list[int]:
    """Different ports that are free at the moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Docker's own proxy does: a port whose last connection is still closing can be used.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _holder(engine: Engine, port: int) -> str:
    if container := engine.published_ports().get(port):
        return f"the container {container}"
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another program"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another program"


def check_memory(engine: Engine) -> MlstackError | None:
    """Whether Docker has enough memory."""
    total = engine.info["MemTotal"] / GIB
    if total >= MIN_MEMORY_GIB * 0.9:  # a computer with 4 GiB reports a little less
        return None
    return MlstackError(
        f"too little memory for Docker: expected at least {MIN_MEMORY_GIB} GiB, found {total:.1f}.",
        "MLflow or a notebook would be killed in the middle of its work.",
        "give Docker more (Docker Desktop: Settings > Resources)",
    )


def check_disk(stack: Stack, expected: float) -> MlstackError | None:
    """Whether `expected` GiB are free where Docker keeps images and volumes."""
    # Docker Desktop's folder is inside its virtual machine, whose disk file is on the project's disk.
    root = Path(stack.engine.info["DockerRootDir"])
    place = root if root.exists() else stack.folder
    free = shutil.disk_usage(place).free / GIB
    if free >= expected:
        return None
    return MlstackError(
        f"too little free disk at {place}: expected at least {expected} GiB, found {free:.1f}.",
        "Postgres and MinIO stop accepting writes when it is full.",
        "free some room (docker system df shows what Docker holds)",
    )
