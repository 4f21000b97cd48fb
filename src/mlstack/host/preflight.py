"""Checks on the host that change nothing: whether the stack could start here."""

import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, folders
from mlstack.host.compose import docker

GIB = 1024**3
MIN_MEMORY_GIB = 4
# Images and build cache of a first build; afterwards the room that a day's work needs.
MIN_DISK_GIB_TO_BUILD, MIN_DISK_GIB = 10, 2
PORTS = ("POSTGRES_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT", "MLFLOW_PORT", "JUPYTER_PORT")


def check(project: Path, *, will_build: bool) -> list[MlstackError]:
    """Everything that would keep the stack from starting; empty if nothing would."""
    if wrong := check_env(project):
        return wrong  # the other checks read .env
    if env_file.is_being_rotated(project):
        return [
            MlstackError(
                "a rotation of the secrets was interrupted.",
                "Some services may know the new ones of .env.next already, others the old ones of .env.",
                "make rotate goes on where it ended",
            )
        ]
    values = settings.of_project(project)
    expected_disk = MIN_DISK_GIB_TO_BUILD if will_build else MIN_DISK_GIB
    problems = (*check_ports(values), check_memory(), check_disk(project, expected_disk))
    return [problem for problem in problems if problem]


def check_env(project: Path) -> list[MlstackError]:
    """Everything that is wrong with `.env`."""
    why = "The stack would not start, or not as you mean it."
    wrong = [
        MlstackError(f"{problem}.", why, "edit .env (.env.example explains each key)") for problem in env_file.problems(project)
    ]
    return wrong or _folders_in_reach(project)


def _folders_in_reach(project: Path) -> list[MlstackError]:
    """Folders of the host's own files that are inside one that a container writes in."""
    values = settings.of_project(project)
    logs = settings.log_dir(values["LOG_DIR"], project).resolve()
    mounted = [(project / "notebooks").resolve(), *(logs / name for name in folders.LOGGING)]
    places = {"LOG_DIR": logs, "BACKUP_DIR": (project / Path(values["BACKUP_DIR"]).expanduser()).resolve()}
    return [
        MlstackError(
            f"{name}={values[name]} is inside {folder}, where a container writes.",
            "A package in a notebook could choose which files the commands of this machine write to.",
            f"set {name} in .env to another folder",
        )
        for name, place in places.items()
        for folder in mounted
        if place.is_relative_to(folder)
    ]


def warnings(project: Path) -> list[str]:
    """What is allowed and probably not meant."""
    return [
        *(f".env has a key that nothing reads: {name}" for name in env_file.unknown_keys(project)),
        *(f"{name} comes from your shell, not from .env, and they differ" for name in settings.shadowed(project)),
        *_open_mlflow(settings.of_project(project)),
    ]


def _open_mlflow(values: Mapping[str, str]) -> list[str]:
    if values.get("MLFLOW_AUTH") != "off":
        return []
    return [
        f"MLFLOW_AUTH=off: any program on this machine may read, change and delete what is in MLflow, through port"
        f" {values.get('MLFLOW_PORT')}, and, without the origin check, so may any page in your browser"
    ]


def check_ports(values: Mapping[str, str]) -> list[MlstackError]:
    """Every port that the stack cannot have, with its holder."""
    ours = published_ports(values["COMPOSE_PROJECT_NAME"])
    problems = []
    names_of: dict[int, str] = {}
    for name in PORTS:
        port = int(values[name])
        if port in names_of:
            problems.append(_port_problem(name, port, f"by {names_of[port]} too"))
        elif port not in ours and not _is_free(port):
            problems.append(_port_problem(name, port, f"by {_holder(port)}"))
        names_of[port] = name
    return problems


def _port_problem(name: str, port: int, holder: str) -> MlstackError:
    return MlstackError(f"port {port} is used {holder}.", f"{name} needs it.", f"stop that, or set {name} in .env to a free port")


def published_ports(project_name: str) -> set[int]:
    """Ports that this stack's own running containers hold."""
    output = docker("ps", "--filter", f"label=com.docker.compose.project={project_name}", "--format", "{{.Ports}}")
    return _ports_in(output)


def _ports_in(listing: str) -> set[int]:
    """The host's ports in a listing of docker ps, which writes neighbours as one range: 127.0.0.1:9000-9001->9000-9001/tcp."""
    ranges = re.findall(r":(\d+)(?:-(\d+))?->", listing)
    return {port for first, last in ranges for port in range(int(first), int(last or first) + 1)}


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds at the moment, all different."""
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
        # As Docker's own proxy does: a port whose last connection is still closing can be had.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    for line in docker("ps", "--format", "{{.Names}}\t{{.Ports}}").splitlines():
        name, _, ports = line.partition("\t")
        if port in _ports_in(ports):
            return f"the container {name}"
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another program"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "another program"


def check_memory() -> MlstackError | None:
    """Whether Docker has memory enough."""
    total = int(docker("info", "--format", "{{.MemTotal}}")) / GIB
    if total >= MIN_MEMORY_GIB * 0.9:  # a machine sold with 4 GiB reports a little less
        return None
    return MlstackError(
        f"too little memory for Docker: expected at least {MIN_MEMORY_GIB} GiB, found {total:.1f}.",
        "MLflow or a notebook would be killed in the middle of its work.",
        "give Docker more (Docker Desktop: Settings > Resources)",
    )


def check_disk(project: Path, expected: float) -> MlstackError | None:
    """Whether `expected` GiB are free where Docker keeps images and volumes."""
    # Inside Docker Desktop's machine the folder is not to be seen from here: its disk file lies on the project's side.
    root = Path(docker("info", "--format", "{{.DockerRootDir}}").strip())
    place = root if root.exists() else project
    free = shutil.disk_usage(place).free / GIB
    if free >= expected:
        return None
    return MlstackError(
        f"too little free disk at {place}: expected at least {expected} GiB, found {free:.1f}.",
        "Postgres and MinIO stop accepting writes when it is full.",
        "free some room (docker system df shows what Docker holds)",
    )
