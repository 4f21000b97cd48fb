"""`make up`: from any state to a healthy stack."""

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
from mlstack.host import env_file, examples, extra_packages, folders, networks, preflight, recovery, services
from mlstack.host.backup import data_services, swap
from mlstack.host.engine import Container
from mlstack.host.stack import Stack
from mlstack.logger import create, get_logger

log = get_logger("mlstack.start")

HEARTBEAT = 20  # seconds between progress messages of a build
SHOWN_LINES = 15
_UNREACHABLE = r"(error sending request|dial tcp|Temporary failure|Could not resolve|certificate|connection refused).*"


def prepare_env(stack: Stack) -> Stack:
    """Writes or completes `.env` and logs what it did. Raises MlstackError if a new secret would lock the user out of data."""
    known = recovery.from_containers(stack) if stack.env is None else {}
    changes = env_file.ensure(stack.folder, lambda name: _lost(stack, name), known)
    if changes.created and known:
        log.warning(
            ".env was missing: wrote it with what the containers of %s were given; keys that no container knows have their"
            " defaults (check BACKUP_DIR and LOG_DIR; BACKUP_KEY is new, so make restore asks about earlier backups)",
            known["COMPOSE_PROJECT_NAME"],
        )
    elif changes.created:
        log.info("wrote .env with fresh secrets, readable by you alone")
        folders.close_notebooks(stack.folder)
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
    stack = _with_notebooks(stack.reread())
    examples.offer(stack)
    return stack


def _with_notebooks(stack: Stack) -> Stack:
    """The stack with RAY_NOTEBOOKS as the part `ray` is: compose cannot look for a name in COMPOSE_PROFILES."""
    wanted = "on" if {"ray", "*"} & {*services.enabled(stack.values)} else "off"
    if stack.values.get("RAY_NOTEBOOKS") == wanted:
        return stack
    env_file.change(stack.folder, RAY_NOTEBOOKS=wanted)
    log.info("set RAY_NOTEBOOKS=%s in .env: the next start replaces Jupyter, which ends its kernels", wanted)
    return stack.reread()


def up(stack: Stack) -> Stack:
    """Prepares, builds and starts the stack, and returns when every service is healthy. Raises MlstackError."""
    stack = prepare(stack)
    start(stack)
    return stack


def prepare(stack: Stack) -> Stack:
    """Everything before the first container: `.env`, checks, folders, images. Raises MlstackError."""
    stack = check(stack)
    build(stack)
    return stack


def check(stack: Stack) -> Stack:
    """`.env`, checks of the host, folders. Raises MlstackError naming what prevents a start."""
    stack = prepare_env(stack)
    if not preflight.check_env(stack):
        stack = networks.ensure_free(stack)
    for warning in preflight.warnings(stack):
        log.warning("%s", warning)
    if problems := preflight.check(stack, will_build=bool(_missing_images(stack))):
        raise ExceptionGroup("refused", problems)
    for warning in preflight.left_behind(stack):
        log.warning("%s", warning)
    folders.prepare(stack)
    return stack


def build(stack: Stack) -> None:
    """Builds the images that `.env` does not name. Raises MlstackError with the build's last lines."""
    built = stack.built
    if not built:
        return
    sources = _sources()
    if "minio" in built:
        _refuse_unchecked_modules(sources)
    if "jupyter" in built:
        extra_packages.lock(stack, sources)
    missing = _missing_images(stack)
    if missing:
        log.info("building the images of %s: about 7 minutes on 2 cores the first time, mostly compiling", ", ".join(missing))
    with create(stack.logs, "build_%Y%m%d_%H%M%S.txt", datetime.now().astimezone()) as transcript:
        code = _run_build(stack, built, sources, transcript)
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


def _lost(stack: Stack, name: str) -> str | None:
    """Why a new secret would not work. The bootstrap sets every secret again but these two."""
    if name not in ("POSTGRES_PASSWORD", "MLFLOW_CRYPTO_KEK_PASSPHRASE"):
        return None
    volume = f"{stack.name}_postgres"
    return f"the volume {volume} was made with the old one." if volume in stack.engine.volumes(stack.name) else None


def _missing_images(stack: Stack) -> list[str]:
    return [service for service in stack.built if not stack.engine.has_image(stack.image(service))]


def _run_build(stack: Stack, services: list[str], sources: Mapping[str, str], transcript: TextIO) -> int:
    """Builds into a transcript, with a progress message now and then."""
    command = ("--progress", "plain", "build", *services)
    started = time.monotonic()
    environment = {**sources, "MLSTACK_VERSION": __version__, "STORAGE": stack.storage}
    process = stack.compose.started(*command, environment=environment, stdout=transcript, stderr=subprocess.STDOUT)
    while True:
        try:
            return process.wait(timeout=HEARTBEAT)
        except subprocess.TimeoutExpired:
            log.info("building, %d s: %s", time.monotonic() - started, _in_progress(_text(transcript)))


def _text(transcript: TextIO) -> str:
    transcript.seek(0)
    return transcript.read()


def _why(lines: list[str]) -> str:
    """Why a build failed: an unreachable package index, or the repository itself."""
    unreachable = re.search(_UNREACHABLE, "\n".join(lines), re.IGNORECASE)
    if unreachable:
        return f"A package source could not be reached: {unreachable[0][:120]} (see HTTPS_PROXY, and CA_BUNDLE in .env)."
    return "The stack cannot start without it."


def _in_progress(text: str) -> str:
    """The unfinished steps of a build: compiling MinIO prints nothing for minutes."""
    begun = re.findall(r"^#(\d+) \[([^\]]+)\]", text, re.MULTILINE)
    ended = set(re.findall(r"^#(\d+) (?:DONE|CACHED|ERROR|CANCELED)", text, re.MULTILINE))
    return ", ".join(dict.fromkeys(quoted(name) for number, name in begun if number not in ended)) or "storing the images"


def _sources() -> dict[str, str]:
    """The host's own package sources, for the builds: mirrors, and proxies in either spelling."""
    sources = _proxies()
    index = settings.of_shell("PIP_INDEX_URL") or settings.of_shell("UV_DEFAULT_INDEX") or settings.of_shell("UV_INDEX_URL")
    sources["PIP_INDEX_URL"] = index or _answer("pip", "config", "get", "global.index-url")
    for name in ("GOPROXY", "GOSUMDB"):
        sources[name] = settings.of_shell(name) or _answer("go", "env", name)
    return sources


def _proxies() -> dict[str, str]:
    return {
        name: settings.of_shell(name) or settings.of_shell(name.lower()) for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    }


def _refuse_unchecked_modules(sources: Mapping[str, str]) -> None:
    if sources["GOSUMDB"] == "off":
        raise MlstackError(
            "GOSUMDB is off in your shell or in Go's settings.",
            "MinIO would be compiled from modules that nobody has checked: whoever serves them could change them.",
            "go env -u GOSUMDB (or unset GOSUMDB); behind a proxy that does not pass Go's checksum database on, set GOPROXY to"
            " one that does, or GOSUMDB to a mirror of the database",
        )


def _answer(*command: str) -> str:
    """The output of a program of the host, empty without such a program or setting."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def start(stack: Stack) -> None:
    """Starts every service and waits until each is healthy. Raises MlstackError with the last log lines of those that are not."""
    log.info("starting the services and waiting until each is healthy")
    # A killed restore has to be ended before MLflow starts.
    if data_services.try_data_services(stack):
        swap.settle(stack)
    # Notebooks get the proxies of the builds, in both spellings: curl reads one, other programs the other.
    outside = {spelling: value for name, value in _proxies().items() if value for spelling in (name, name.lower())}
    if stack.compose.attached("up", "--detach", "--wait", "--no-build", "--remove-orphans", environment=outside) == 0:
        networks.remove_unused(stack)
        return
    if missing := networks.missing(stack):
        raise MlstackError(
            f"Docker did not create the network {min(missing)}: it says why, above.",
            "Services use each other through it. Docker has addresses for about 30 networks, of all projects together.",
            "if it has none left, docker network prune or make down in another stack's folder; then make up",
        )
    # A container that was only created waits for an unhealthy one, unless Docker could not start it: those come first.
    unhealthy = sorted(
        (
            container
            for container in stack.engine.containers(stack.name)
            if not container.is_healthy and (container.state != "created" or container.exit_code)
        ),
        key=lambda container: container.state != "created",
    )
    for container in unhealthy:
        log.error("%s: %s\n%s", container.service, container.description, quoted_lines(_last_words(stack, container)))
    names = " ".join(container.service for container in unhealthy)
    raise MlstackError(
        f"not every service became healthy: {names or 'docker compose says why, above'}.",
        "Nothing was lost; what is healthy keeps running.",
        f"what the lines above say; more with docker compose logs {names}",
    )


def _last_words(stack: Stack, container: Container) -> list[str]:
    lines = stack.engine.last_lines(container, 200)
    telling = [line for line in lines if re.search(r"ERROR|FATAL|Error:", line)]
    return telling[-3:] or lines[-SHOWN_LINES:]
