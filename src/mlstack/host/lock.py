"""One command at a time changes a stack."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

import psutil

from mlstack.errors import MlstackError


@contextmanager
def held(project: Path, command: str) -> Iterator[None]:
    """Holds the project's lock while `command` runs. Raises MlstackError saying who holds it, if somebody does.

    The kernel frees the lock when its holder ends, however it ends: there are no stale ones.
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
    """Which other command is at work, empty if none is. Only looks: it never takes the lock, not even for a moment."""
    path = project / ".lock"
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    process = re.search(r"process (\d+)", text)  # a killed command leaves its line behind
    return text if process and int(process[1]) != os.getpid() and psutil.pid_exists(int(process[1])) else ""


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise MlstackError(
            f"the lock cannot be taken: {error}.",
            "One command at a time may change a stack.",
            f"make {path} yours (chown), or delete it",
        ) from error
