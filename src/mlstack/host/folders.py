"""The folders of the host that containers write in: their owner, and what programs of the host would run from them.

A container may exchange anything in such a folder at any moment, so everything here goes by directory descriptor and follows
no link. `LOG_DIR` itself is mounted nowhere: host commands write there, and each container has a folder in it.
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

# What programs of the host run code from when somebody merely enters or opens the folder. docker-compose.yml covers them with
# empty read-only folders in Jupyter's container. HEAD: without it no folder is a Git repository by its own files.
COVERED = (".git", ".hg", ".idea", ".vscode", "HEAD")
# A cover takes the mode of the folder under it: Jupyter's user must be able to list it.
PRIVATE, READABLE = 0o700, 0o755
_DEEPEST = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def prepare(stack: Stack) -> None:
    """Makes the folders that containers write in, and gives them to their user; Docker would make them root's.

    Raises MlstackError when something else is in the place of one of them.
    """
    uid, gid = int(stack.values["HOST_UID"]), int(stack.values["HOST_GID"])
    with _opened(stack.folder / "notebooks") as notebooks:
        for name in COVERED:
            _make(notebooks, name, stack.folder / "notebooks", READABLE)
        give(notebooks, uid, gid)
    with _opened(stack.logs) as descriptor:
        _keep_private(descriptor, stack.folder)
        for name in stack.services.logging:
            _make(descriptor, name, stack.logs, PRIVATE)
            with _opened(name, descriptor) as folder:
                give(folder, uid, gid)


def close_notebooks(project: Path) -> None:
    """Takes a fresh clone's notebooks from the other users of the host. Later on the folder's mode is the user's choice."""
    with suppress(FileNotFoundError):
        (project / "notebooks").chmod(PRIVATE)


def tidy(project: Path) -> None:
    """Removes from `notebooks/` the empty folders over which the covers were mounted. No container may be running."""
    with suppress(OSError), _opened(project / "notebooks") as notebooks:
        for name in COVERED:
            with suppress(OSError):  # not there, or the user's own: not empty
                os.rmdir(name, dir_fd=notebooks)


def give(folder: int, uid: int, gid: int) -> None:
    """Gives an open folder and everything in it to a user, where this process may (as root). Follows no link."""
    if settings.is_root():  # anybody else owns what they cloned
        os.fchown(folder, uid, gid)
        _give_content(folder, uid, gid, _DEEPEST)


def _give_content(folder: int, uid: int, gid: int, levels: int) -> None:
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # gone since it was listed
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if found.st_uid != uid:
                os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                continue
            if not levels:
                log.warning("folders nested deeper than %d in a mounted folder keep their owner", _DEEPEST)
                continue
            with suppress(NotADirectoryError), _opened(name, folder) as inner:  # exchanged for something else since
                _give_content(inner, uid, gid, levels - 1)


def _make(parent: int, name: str, shown: Path, mode: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
        with _opened(name, parent) as made:
            os.fchmod(made, mode)  # whatever the umask is
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        raise MlstackError(
            f"{shown / name} is not a folder.",
            "A container's folder belongs there; something else could lead it to your own files.",
            f"look at it, then move or remove it: rm {shown / name}",
        )


def _keep_private(logs: int, project: Path) -> None:
    """Who may read the project's commands as their own may read their logs, and nobody else."""
    if settings.is_root():
        owner = project.stat()
        os.fchown(logs, owner.st_uid, owner.st_gid)
    if stat.S_IMODE(os.fstat(logs).st_mode) != PRIVATE:
        os.fchmod(logs, PRIVATE)


@contextmanager
def _opened(folder: Path | str, parent: int | None = None) -> Iterator[int]:
    """A folder by its descriptor: below `parent` without following a link, otherwise made if it is missing."""
    if parent is None:
        Path(folder).mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        descriptor = os.open(folder, _FOLDER)
    else:
        descriptor = os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
