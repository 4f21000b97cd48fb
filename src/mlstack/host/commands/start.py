"""`make up`: from whatever is there to a healthy stack."""

import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TextIO

from mlstack import __version__, settings
from mlstack.errors import MlstackError, quoted, quoted_lines
from mlstack.host import env_file, folders, networks, preflight, recovery
from mlstack.host.backup import stack, swap
from mlstack.host.compose import Container, attached, containers, docker, last_lines, volumes
from mlstack.logger import create, get_logger

log = get_logger("mlstack.start")

# Services whose images are built here unless .env names another; the one-shots share MLflow's.
# MinIO first: compiling it takes longest.
IMAGES: Mapping[str, str] = {
    "minio": "MINIO_IMAGE",
    "mlflow": "MLFLOW_IMAGE",
    "jupyter": "JUPYTER_IMAGE",
    "postgres": "POSTGRES_IMAGE",
}
HEARTBEAT = 20  # seconds between signs of life in a build
SHOWN_LINES = 15
_UNREACHABLE = r"(error sending request|dial tcp|Temporary failure|Could not resolve|certificate|connection refused).*"


def prepare_env(project: Path) -> None:
    """Writes or completes `.env` and says what it did. Raises MlstackError when that would lock the user out of data."""
    known = {} if (project / ".env").exists() else recovery.from_containers(project)
    changes = env_file.ensure(project, lambda name: _lost(project, name), known)
    if changes.created and known:
        log.warning(
            ".env was missing: wrote it with what the containers of %s were given; keys that no container knows have their"
            " defaults (check BACKUP_DIR and LOG_DIR; BACKUP_KEY is new, so make restore asks about earlier backups)",
            known["COMPOSE_PROJECT_NAME"],
        )
    elif changes.created:
        log.info("wrote .env with fresh secrets, readable by you alone")
        folders.close_notebooks(project)
    if changes.added:
        log.info("added to .env: %s", ", ".join(changes.added))
    if changes.changed_owner:
        log.warning(
            "HOST_UID was 1000, a person on most machines, who could read what Jupyter holds: now it is %d, which nobody has,"
            " and notebooks/, logs and volumes are given to it",
            env_file.UID_FOR_ROOT,
        )
    if changes.made_private:
        log.warning(".env could be read by others: now by you alone (0600)")


def up(project: Path) -> None:
    """Prepares, builds and starts the stack, and returns when every service is healthy. Raises MlstackError."""
    prepare(project)
    start(project)


def prepare(project: Path) -> None:
    """Everything before the first container: `.env`, checks, folders, images. Raises MlstackError."""
    check(project)
    build(project)


def check(project: Path) -> None:
    """`.env`, checks of this machine, folders. Raises MlstackError naming what would keep the stack from starting."""
    prepare_env(project)
    if not preflight.check_env(project):
        networks.ensure_free(project)
    for warning in preflight.warnings(project):
        log.warning("%s", warning)
    if problems := preflight.check(project, will_build=bool(_missing_images(project))):
        raise ExceptionGroup("refused", problems)
    folders.prepare(project)


def build(project: Path) -> None:
    """Builds the images that `.env` does not name. Raises MlstackError with the build's last lines."""
    services = _built_here(project)
    if not services:
        return
    sources = _sources()
    if "minio" in services:
        _refuse_unchecked_modules(sources)
    missing = _missing_images(project)
    if missing:
        log.info(
            "building the images of %s: about 5 minutes on 2 cores the first time, mostly compiling MinIO", ", ".join(missing)
        )
    log_dir = settings.log_dir(settings.of_project(project)["LOG_DIR"], project)
    with create(log_dir, "build_%Y%m%d_%H%M%S.txt", datetime.now().astimezone()) as transcript:
        code = _run_build(project, services, sources, transcript)
        lines = [line for line in _text(transcript).splitlines() if line.strip()]
    if code:
        log.error("the build said:\n%s", quoted_lines(lines[-SHOWN_LINES:]))
        raise MlstackError(
            "an image could not be built (its last lines are above).",
            _why(lines),
            f"the whole transcript is {transcript.name}; then make up again",
        )
    if not missing:
        Path(transcript.name).unlink()


def _lost(project: Path, name: str) -> str | None:
    """Why a fresh secret would not fit. Every secret but these two is set again by the bootstrap."""
    if name not in ("POSTGRES_PASSWORD", "MLFLOW_CRYPTO_KEK_PASSPHRASE"):
        return None
    project_name = settings.of_project(project).get("COMPOSE_PROJECT_NAME", "mlstack")
    volume = f"{project_name}_postgres"
    return f"the volume {volume} was made with the old one." if volume in volumes(project_name) else None


def _built_here(project: Path) -> list[str]:
    values = settings.of_project(project)
    return [service for service, variable in IMAGES.items() if not values.get(variable)]


def _missing_images(project: Path) -> list[str]:
    name = settings.of_project(project).get("COMPOSE_PROJECT_NAME")
    return [service for service in _built_here(project) if not docker("image", "ls", "--quiet", f"{name}-{service}").strip()]


def _run_build(project: Path, services: list[str], sources: Mapping[str, str], transcript: TextIO) -> int:
    """Builds into a transcript, with a sign of life now and then."""
    command = ["docker", "compose", "--progress", "plain", "build", *services]
    started = time.monotonic()
    environment = settings.for_commands(**sources, MLSTACK_VERSION=__version__)
    process = subprocess.Popen(command, cwd=project, env=environment, stdout=transcript, stderr=subprocess.STDOUT)
    while True:
        try:
            return process.wait(timeout=HEARTBEAT)
        except subprocess.TimeoutExpired:
            log.info("building, %d s: %s", time.monotonic() - started, _in_progress(_text(transcript)))


def _text(transcript: TextIO) -> str:
    transcript.seek(0)
    return transcript.read()


def _why(lines: list[str]) -> str:
    """A package index that cannot be reached is the one failure that is not the repository's."""
    unreachable = re.search(_UNREACHABLE, "\n".join(lines), re.IGNORECASE)
    if unreachable:
        return f"A package source could not be reached: {unreachable[0][:120]} (see HTTPS_PROXY, and CA_BUNDLE in .env)."
    return "The stack cannot start without it."


def _in_progress(text: str) -> str:
    """The steps that have begun and not ended: compiling MinIO is one, and says nothing for minutes."""
    begun = re.findall(r"^#(\d+) \[([^\]]+)\]", text, re.MULTILINE)
    ended = set(re.findall(r"^#(\d+) (?:DONE|CACHED|ERROR|CANCELED)", text, re.MULTILINE))
    return ", ".join(dict.fromkeys(quoted(name) for number, name in begun if number not in ended)) or "storing the images"


def _sources() -> dict[str, str]:
    """Where the host itself takes packages from, for the builds: mirrors, and proxies in either spelling."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    sources = {name: settings.of_shell(name) or settings.of_shell(name.lower()) for name in proxies}
    index = settings.of_shell("PIP_INDEX_URL") or settings.of_shell("UV_DEFAULT_INDEX") or settings.of_shell("UV_INDEX_URL")
    sources["PIP_INDEX_URL"] = index or _answer("pip", "config", "get", "global.index-url")
    for name in ("GOPROXY", "GOSUMDB"):
        sources[name] = settings.of_shell(name) or _answer("go", "env", name)
    return sources


def _refuse_unchecked_modules(sources: Mapping[str, str]) -> None:
    if sources["GOSUMDB"] == "off":
        raise MlstackError(
            "GOSUMDB is off in your shell or in Go's settings.",
            "MinIO would be compiled from modules that nobody has checked: whoever serves them could change them.",
            "go env -u GOSUMDB (or unset GOSUMDB); behind a proxy that does not pass Go's checksum database on, set GOPROXY to"
            " one that does, or GOSUMDB to a mirror of the database",
        )


def _answer(*command: str) -> str:
    """What a program of the host says, empty where there is no such program or setting."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def start(project: Path) -> None:
    """Starts every service and waits until each is healthy. Raises MlstackError with the last words of those that are not."""
    log.info("starting the services and waiting until each is healthy")
    # What a killed restore left has to be ended before MLflow starts on it.
    if stack.try_data_services(project):
        swap.settle(stack.of_project(project))
    if attached(project, "up", "--detach", "--wait", "--no-build", "--remove-orphans") == 0:
        networks.remove_unused(project)
        return
    # A container that was only created waits for one that is ill.
    ill = [container for container in containers(project) if not container.is_well and container.state != "created"]
    for container in ill:
        log.error("%s: %s\n%s", container.service, container.status, quoted_lines(_last_words(container)))
    names = " ".join(container.service for container in ill)
    raise MlstackError(
        f"not every service became healthy: {names or 'docker compose says why, above'}.",
        "Nothing was lost; what is healthy keeps running.",
        f"what the lines above say; more with docker compose logs {names}",
    )


def _last_words(container: Container) -> list[str]:
    lines = last_lines(container, 200)
    telling = [line for line in lines if re.search(r"ERROR|FATAL|Error:", line)]
    return telling[-3:] or lines[-SHOWN_LINES:]
