"""One logger for scripts, containers and notebooks: a file for each process, and the stream.

from mlstack.logger import get_logger
log = get_logger(__name__)
"""

import logging
import os
import re
import sys
import threading
from datetime import datetime, timedelta
from io import TextIOWrapper
from pathlib import Path

from mlstack import settings
from mlstack.settings import LOG_DIR, LOG_LEVEL

FILE_FORMAT = "%(asctime)s | %(name)s | %(filename)s:%(lineno)d | %(funcName)s | %(levelname)s | %(message)s"
STREAM_FORMAT = "%(asctime)s | %(filename)s:%(lineno)d | %(levelname)s | %(message)s"

FILE_NAME = "%Y%m%d_%H%M%S.log"
_SECONDS = 3600  # how many seconds ahead a file may search for a free name

# Where ipykernel says the code of a cell is.
_CELL = re.compile(r"[/\\]ipykernel_\d+[/\\]\d+\.py$")

_lock = threading.Lock()
_started = datetime.now().astimezone()
_files: dict[Path, logging.Handler] = {}
_streams: list[logging.Handler] = []


class _Hiding(logging.Formatter):
    """Replaces every secret that this process knows by ***, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        if _CELL.search(record.pathname) and (name := notebook()):
            record.filename = name
        text = super().format(record)
        # The longest first: a secret may begin with another.
        for secret in sorted(settings.secret_values(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


class _Stream(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the current sys.stderr: notebooks and tests replace it while the process runs."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        # A notebook shows everything from stderr on red ground, as errors.
        is_calm = record.levelno < logging.WARNING and notebook() is not None
        self.stream = sys.stdout if is_calm else sys.stderr
        super().emit(record)


class _File(logging.FileHandler):
    """Creates its file with the first line: a process that logs nothing leaves none."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / FILE_NAME, encoding="utf-8", delay=True)
        self._folder = folder
        self._is_broken = False
        self.setFormatter(_Hiding(FILE_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        if self._is_broken:
            return
        if self.stream is None:
            try:
                self.stream = create(self._folder, FILE_NAME, _started)
            except OSError:
                self._is_broken = True
                logging.getLogger(record.name).warning(
                    "LOG_DIR %s cannot be written: logging to the stream only. Fix: chown or chmod it, or set LOG_DIR.",
                    self._folder,
                )
                return
        super().emit(record)


def notebook() -> str | None:
    """The name of the notebook that this process is the kernel of, None in any other process."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    # Only VS Code says it to the kernel itself; a notebook may also have no name, as a kernel of `jupyter console`.
    path = shell.user_ns.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")
    return Path(path).name if path else None


def create(folder: Path, name: str, time: datetime) -> TextIOWrapper:
    """Creates a file that only its user may read. `name` is a pattern of strftime, for `time` or the next free second.

    It never opens an existing file and follows no link: a process that may write in the folder cannot choose another target.
    Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for second in range(_SECONDS):
        path = folder / f"{time + timedelta(seconds=second):{name}}"
        try:
            # Appending: a forked process that writes to the same file overwrites nothing.
            return open(path, "x+", encoding="utf-8", errors="backslashreplace", opener=_private)
        except FileExistsError:
            continue
    raise FileExistsError(f"every name for the next {_SECONDS} s exists in {folder}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND | os.O_NOFOLLOW, 0o600)


def get_logger(name: str, log_dir: str | Path = LOG_DIR, log_level: str = LOG_LEVEL) -> logging.Logger:
    """The logger of this name, which writes to `{log_dir}/%Y%m%d_%H%M%S.log` and to stderr.

    The file is named after the time the process started, or the next second if another process has that name. Another call
    returns the same logger with the same handlers. If `log_dir` cannot be written, it warns once and writes to the stream
    only. Raises SettingsError for an unknown level.
    """
    level = settings.log_level(log_level)
    with _lock:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        # Handlers of parents (Jupyter and pytest add some to the root) would print every line again.
        logger.propagate = False
        folder = settings.log_dir(log_dir)
        if folder not in _files:
            _files[folder] = _File(folder)
        handlers = [_stream_handler(), _files[folder]]
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(handler)
        for handler in handlers:
            logger.addHandler(handler)  # does nothing if it is there already
    return logger


def _stream_handler() -> logging.Handler:
    if not _streams:
        handler = _Stream()
        handler.setFormatter(_Hiding(STREAM_FORMAT))
        _streams.append(handler)
    return _streams[0]
