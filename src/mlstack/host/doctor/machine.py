"""The host: engine, compose, disk and memory, clock, ports, and other running commands."""

import os
import subprocess
from pathlib import Path

from mlstack.errors import MlstackError
from mlstack.host import lock, preflight
from mlstack.host.doctor.check import CheckWarning, check
from mlstack.host.doctor.context import Subject, skew

REACH = "the host"


@check(REACH, "Docker engine, compose and buildx")
def engine(subject: Subject) -> str:
    """Runs the script with which `make up` prepares the engine: it reports what is wrong."""
    script = subject.stack.folder / "scripts" / "engine.sh"
    done = subprocess.run([script, "check"], cwd=subject.stack.folder, capture_output=True, text=True, check=False)
    if done.returncode:
        wrong, why, fix = (line.strip() for line in done.stderr.splitlines()[-3:])
        raise MlstackError(wrong.removeprefix("mlstack: "), why, fix.removeprefix("Fix: "))
    return f"Docker {subject.stack.engine.info['ServerVersion']}"


@check(REACH, "memory for Docker", engine)
def memory(subject: Subject) -> None:
    if problem := preflight.check_memory(subject.stack.engine):
        raise problem


@check(REACH, "free disk where Docker keeps its data", engine)
def disk(subject: Subject) -> None:
    if problem := preflight.check_disk(subject.stack, subject.limits.disk_gib):
        raise problem


@check(REACH, "room for more files", engine)
def inodes(subject: Subject) -> None:
    """A disk with free bytes can be out of inodes: MinIO needs several for each object."""
    root = Path(subject.stack.engine.info["DockerRootDir"])
    place = root if root.exists() else subject.stack.folder
    status = os.statvfs(place)
    if status.f_files and status.f_favail < subject.limits.free_inodes:  # some file systems do not count them
        raise MlstackError(
            f"too few free inodes at {place}: expected at least {subject.limits.free_inodes}, found {status.f_favail}.",
            "MinIO and Postgres cannot make another file there, however many bytes are free.",
            "delete folders with very many small files (df -i shows the disk)",
        )


@check(REACH, "clock of the engine", engine)
def clock(subject: Subject) -> str:
    """The engine of Docker Desktop has a machine, and a clock, of its own: it falls behind while the laptop sleeps."""
    return skew(
        subject, "the Docker engine", subject.stack.engine.time, "restart Docker (Docker Desktop), or set the clock: timedatectl"
    )


@check(REACH, "no other command is at work")
def lock_is_free(subject: Subject) -> None:
    if holder := lock.holder(subject.stack.folder):
        raise CheckWarning(
            f"another command is at work on this stack: {holder}.",
            "What is found below may change.",
            "make doctor, when it is done",
        )
