"""Only one command at a time changes a stack."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil

from mlstack import settings
from mlstack.errors import MlstackError

PRIVATE = 0o600


@contextmanager
def held(project: Path, command: str) -> Iterator[None]:
    """Holds the project's lock while `command` runs. Raises MlstackError naming its holder if another command has it.

    The kernel frees the lock when its holder ends in any way: there are no stale locks.
    """
    with _opened(project / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise MlstackError(
                f"another command is at work on this stack: {file.read().strip() or 'unknown'}.",
                f"{command} would get in its way.",
                "wait for it, or stop it with Ctrl-C in its terminal",
            ) from None
        file.truncate(0)
        file.write(f"{command}, process {os.getpid()}, since {datetime.now().astimezone():%H:%M:%S}\n")
        file.flush()
        yield
        file.truncate(0)


def holder(project: Path) -> str:
    """The other running command, empty if there is none. It never takes the lock, not even briefly."""
    path = project / ".lock"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    process = re.search(r"process (\d+)", text)  # a killed command leaves its line
    return text if process and int(process[1]) != os.getpid() and psutil.pid_exists(int(process[1])) else ""


def _opened(path: Path) -> TextIO:
    """The lock's file, which only the project's owner may open: any reader could hold it forever."""
    try:
        file = open(path, "a+", encoding="utf-8", opener=_private)  # noqa: SIM115
    except OSError as error:
        raise _not_ours(path, str(error)) from error
    status, project = os.fstat(file.fileno()), path.parent.stat()
    if settings.is_root():
        os.fchown(file.fileno(), project.st_uid, project.st_gid)  # after sudo make it is still the user's
    elif status.st_uid != os.geteuid():
        file.close()
        raise _not_ours(path, f"{path} belongs to uid {status.st_uid}")
    if status.st_mode & 0o077:
        os.fchmod(file.fileno(), PRIVATE)
    return file


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, PRIVATE)


def _not_ours(path: Path, reason: str) -> MlstackError:
    return MlstackError(
        f"the lock cannot be taken: {reason}.",
        "One command at a time may change a stack, and whoever owns its lock could stop them all.",
        f"delete {path} (nothing is lost with it)",
    )
