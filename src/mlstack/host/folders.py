"""The folders of the host that containers write in: their owner, and what programs of the host would run from them.

A container may swap anything in such a folder at any time, so everything here uses directory descriptors and follows no
link. `LOG_DIR` itself is mounted nowhere: host commands write there, and each container has a folder in it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.stack import Stack
from mlstack.logger import get_logger

log = get_logger("mlstack.folders")

# Names from which programs of the host run code when a user enters or opens the folder. docker-compose.yml covers them with
# empty read-only folders in Jupyter's container. HEAD: without it no folder is a Git repository by its own files.
COVERED = (".git", ".hg", ".idea", ".vscode", "HEAD")
# A cover takes the mode of the folder under it: Jupyter's user must be able to list it.
PRIVATE, READABLE = 0o700, 0o755
_DEEPEST = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def prepare(stack: Stack) -> None:
    """Creates the folders that containers write in, and gives them to their user; Docker would create them as root.

    Raises MlstackError when one of them is something else.
    """
    uid, gid = int(stack.values["HOST_UID"]), int(stack.values["HOST_GID"])
    with opened(stack.folder / "notebooks") as notebooks:
        for name in COVERED:
            _make(notebooks, name, stack.folder / "notebooks", READABLE)
        give(notebooks, uid, gid)
    with opened(stack.logs) as descriptor:
        _keep_private(descriptor, stack.folder)
        for name in stack.services.logging:
            _make(descriptor, name, stack.logs, PRIVATE)
            with opened(name, descriptor) as folder:
                give(folder, uid, gid)


def close_notebooks(project: Path) -> None:
    """Makes a fresh clone's notebooks private. Later the folder's mode is the user's choice."""
    with suppress(FileNotFoundError):
        (project / "notebooks").chmod(PRIVATE)


def tidy(project: Path) -> None:
    """Removes from `notebooks/` the empty folders over which the covers were mounted. No container may be running."""
    with suppress(OSError), opened(project / "notebooks") as notebooks:
        for name in COVERED:
            with suppress(OSError):  # missing, or the user's own: not empty
                os.rmdir(name, dir_fd=notebooks)


def give(folder: int, uid: int, gid: int) -> None:
    """Changes the owner of an open folder and everything in it, if this process may (as root). Follows no link."""
    if settings.is_root():  # other users own what they cloned
        os.fchown(folder, uid, gid)
        _give_content(folder, uid, gid, _DEEPEST)


def _give_content(folder: int, uid: int, gid: int, levels: int) -> None:
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # removed since it was listed
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if status.st_uid != uid:
                os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                continue
            if not levels:
                log.warning("folders nested deeper than %d in a mounted folder keep their owner", _DEEPEST)
                continue
            with suppress(NotADirectoryError), opened(name, folder) as inner:  # replaced by something else since
                _give_content(inner, uid, gid, levels - 1)


def _make(parent: int, name: str, shown: Path, mode: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
        with opened(name, parent) as folder:
            os.fchmod(folder, mode)  # independent of the umask
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        raise MlstackError(
            f"{shown / name} is not a folder.",
            "A container's folder belongs there; something else could lead it to your own files.",
            f"look at it, then move or remove it: rm {shown / name}",
        )


def _keep_private(logs: int, project: Path) -> None:
    """Makes a folder readable by its owner only."""
    if settings.is_root():
        owner = project.stat()
        os.fchown(logs, owner.st_uid, owner.st_gid)
    if stat.S_IMODE(os.fstat(logs).st_mode) != PRIVATE:
        os.fchmod(logs, PRIVATE)


@contextmanager
def opened(folder: Path | str, parent: int | None = None) -> Iterator[int]:
    """A folder by its descriptor: below `parent` without following a link, otherwise created if it is missing."""
    if parent is None:
        Path(folder).mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        descriptor = os.open(folder, _FOLDER)
    else:
        descriptor = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
