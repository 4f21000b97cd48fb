"""Settings and folders: `.env`, the compose file, and the owners of folders."""

import os
import stat
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host import env_file, preflight
from mlstack.host.doctor.check import CheckWarning, check
from mlstack.host.doctor.context import Subject
from mlstack.host.doctor.machine import engine

REACH = "settings"


@check(REACH, ".env is whole")
def env(subject: Subject) -> str:
    if problems := preflight.check_env(subject.stack):
        raise ExceptionGroup("wrong in .env", problems)
    return f"{len(settings.VARIABLES)} settings"


@check(REACH, ".env against .env.example", env)
def keys(subject: Subject) -> None:
    if missing := env_file.missing_keys(subject.stack.env):
        raise MlstackError(
            f".env lacks {', '.join(missing)}, which .env.example has.",
            "Their values come from your shell now, and are gone with it.",
            "make env adds them",
        )
    if unknown := env_file.unknown_keys(subject.stack.env):
        raise CheckWarning(
            f".env has keys that nothing reads: {', '.join(unknown)}.", "They change nothing.", "correct or remove them"
        )


@check(REACH, "the shell does not override .env", env)
def shell(subject: Subject) -> None:
    if names := settings.shadowed(subject.stack.env):
        raise CheckWarning(
            f"{', '.join(names)} comes from your shell, not from .env, and they differ.",
            "The stack differs from what .env says, and from another shell's.",
            f"unset {' '.join(names)}, or write the value into .env",
        )


@check(REACH, ".env is yours alone", env)
def permissions(subject: Subject) -> None:
    path = (subject.stack.folder / ".env").resolve()
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise MlstackError(
            f".env can be read by others on the host (mode {mode:04o}).",
            "It holds every secret of the stack.",
            "chmod 600 .env",
        )


@check(REACH, "certificates for image builds", env)
def certificates(subject: Subject) -> None:
    path = Path(subject.values["CA_BUNDLE"])
    if not path.exists():
        raise MlstackError(
            f"CA_BUNDLE={path} is not there.",
            "No image can be built without it.",
            f"set CA_BUNDLE in .env to the certificates of the host, or to {os.devnull}",
        )


@check(REACH, "notebooks/ and the log folders are writable", env)
def folders(subject: Subject) -> None:
    """The containers' user writes there: the host's user, or 60712 if that is root."""
    owner = int(subject.values["HOST_UID"])
    logs = (subject.stack.logs / name for name in subject.stack.services.logging)
    for folder in (subject.stack.folder / "notebooks", *logs):
        if not folder.exists():
            continue  # make up creates it
        status = folder.stat()
        needed = stat.S_IWUSR | stat.S_IXUSR if status.st_uid == owner else stat.S_IWOTH | stat.S_IXOTH
        if status.st_mode & needed != needed:
            mode = stat.filemode(status.st_mode)
            raise MlstackError(
                f"{folder} belongs to uid {status.st_uid} ({mode}), and the containers write as uid {owner}.",
                "Notebooks cannot be saved, or logs are lost.",
                f"sudo chown -R {owner} {folder} && chmod u+rwx {folder}",
            )


@check(REACH, "compose reads the project", engine, env)
def compose(subject: Subject) -> str:
    try:
        return f"{len(subject.config['services'])} services"
    except MlstackError as error:
        raise MlstackError(
            f"compose cannot read the project: {error.wrong}",
            "Nothing can be started or stopped.",
            "fix docker-compose.yml (git diff), and any docker-compose.override.yml",
        ) from error


@check(REACH, "no other folder runs a stack of this name", engine, env)
def name(subject: Subject) -> None:
    here = str(subject.stack.folder.resolve())
    others = sorted({container.folder for container in subject.containers.values()} - {here, str(subject.stack.folder)})
    if others:
        raise MlstackError(
            f"the stack {subject.stack.name} was started from {', '.join(others)}, not from {here}.",
            "Two folders with one name share volumes and take each other's containers away.",
            "work in that folder; or set COMPOSE_PROJECT_NAME and the ports in .env here. If you moved the folder: make up",
        )


@check(REACH, "ports are free or ours", engine, env)
def ports(subject: Subject) -> None:
    if problems := preflight.check_ports(subject.stack):
        raise ExceptionGroup("ports", problems)
