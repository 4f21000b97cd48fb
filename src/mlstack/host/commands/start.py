"""`make up`: from whatever is there to a healthy stack."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, preflight, recovery
from mlstack.host.backup import stack, swap
from mlstack.host.compose import Container, attached, containers, docker, last_lines, volumes
from mlstack.logger import get_logger

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
            " defaults (check BACKUP_DIR and LOG_DIR)",
            known["COMPOSE_PROJECT_NAME"],
        )
    elif changes.created:
        log.info("wrote .env with fresh secrets, readable by you alone")
    if changes.added:
        log.info("added to .env: %s", ", ".join(changes.added))
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
    for warning in preflight.warnings(project):
        log.warning("%s", warning)
    if problems := preflight.check(project, will_build=bool(_missing_images(project))):
        raise ExceptionGroup("refused", problems)
    prepare_folders(project)


def build(project: Path) -> None:
    """Builds the images that `.env` does not name. Raises MlstackError with the build's last lines."""
    services = _built_here(project)
    if not services:
        return
    missing = _missing_images(project)
    if missing:
        log.info(
            "building the images of %s: about 5 minutes on 2 cores the first time, mostly compiling MinIO", ", ".join(missing)
        )
    log_dir = settings.log_dir(settings.of_project(project)["LOG_DIR"], project)
    transcript = log_dir / f"build_{datetime.now().astimezone():%Y%m%d_%H%M%S}.txt"
    code = _run_build(project, services, transcript)
    if code:
        lines = [line for line in transcript.read_text(encoding="utf-8").splitlines() if line.strip()]
        log.error("the build said:\n%s", "\n".join(lines[-SHOWN_LINES:]))
        raise MlstackError(
            "an image could not be built (its last lines are above).",
            _why(lines),
            f"the whole transcript is {transcript}; then make up again",
        )
    if not missing:
        transcript.unlink()


def _lost(project: Path, name: str) -> str | None:
    """Why a fresh secret would not fit. Every secret but these two is set anew by the bootstrap."""
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


def prepare_folders(project: Path) -> None:
    """The two mounted folders belong to the user whom the containers run as; Docker would make them root's."""
    values = settings.of_project(project)
    uid, gid = int(values["HOST_UID"]), int(values["HOST_GID"])
    for folder in (project / "notebooks", settings.log_dir(values["LOG_DIR"], project)):
        folder.mkdir(parents=True, exist_ok=True)
        if settings.is_root():  # anybody else owns what they cloned
            for path in (folder, *folder.rglob("*")):
                if path.lstat().st_uid != uid:
                    os.chown(path, uid, gid, follow_symlinks=False)


def _run_build(project: Path, services: list[str], transcript: Path) -> int:
    """Builds into a transcript, with a sign of life now and then."""
    command = ["docker", "compose", "--progress", "plain", "build", *services]
    started = time.monotonic()
    transcript.parent.mkdir(parents=True, exist_ok=True)
    with transcript.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=project, env=settings.for_commands(**_sources()), stdout=file, stderr=subprocess.STDOUT
        )
        while True:
            try:
                return process.wait(timeout=HEARTBEAT)
            except subprocess.TimeoutExpired:
                log.info("building, %d s: %s", time.monotonic() - started, _in_progress(transcript))


def _why(lines: list[str]) -> str:
    """A package index that cannot be reached is the one failure that is not the repository's."""
    unreachable = re.search(_UNREACHABLE, "\n".join(lines), re.IGNORECASE)
    if unreachable:
        return f"A package source could not be reached: {unreachable[0][:120]} (see HTTPS_PROXY, and CA_BUNDLE in .env)."
    return "The stack cannot start without it."


def _in_progress(transcript: Path) -> str:
    """The steps that have begun and not ended: compiling MinIO is one, and says nothing for minutes."""
    text = transcript.read_text(encoding="utf-8")
    begun = re.findall(r"^#(\d+) \[([^\]]+)\]", text, re.MULTILINE)
    ended = set(re.findall(r"^#(\d+) (?:DONE|CACHED|ERROR|CANCELED)", text, re.MULTILINE))
    return ", ".join(dict.fromkeys(name for number, name in begun if number not in ended)) or "storing the images"


def _sources() -> dict[str, str]:
    """Where the host itself takes packages from, for the builds: mirrors, and proxies in either spelling."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    sources = {name: settings.of_shell(name) or settings.of_shell(name.lower()) for name in proxies}
    index = settings.of_shell("PIP_INDEX_URL") or settings.of_shell("UV_DEFAULT_INDEX") or settings.of_shell("UV_INDEX_URL")
    sources["PIP_INDEX_URL"] = index or _answer("pip", "config", "get", "global.index-url")
    for name in ("GOPROXY", "GOSUMDB"):
        sources[name] = settings.of_shell(name) or _answer("go", "env", name)
    return sources


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
        return
    # A container that was only created waits for one that is ill.
    ill = [container for container in containers(project) if not container.is_well and container.state != "created"]
    for container in ill:
        log.error("%s: %s\n%s", container.service, container.status, "\n".join(_last_words(container)))
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
