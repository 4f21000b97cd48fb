"""Files on the service's volume, which several replicas may share."""

import fcntl
import os
import tempfile
from itertools import count
from pathlib import Path


def own_folder(volume: Path) -> Path:
    """The first folder that no other replica holds. It is held until the process ends; the next one takes it over."""
    for number in count(1):
        folder = volume if number == 1 else volume / f"replica-{number}"
        folder.mkdir(exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return folder
    raise AssertionError


def write(path: Path, text: str) -> None:
    """Replaces a file as a whole, which only this user can read. Several processes may do it: one of their texts stays."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
