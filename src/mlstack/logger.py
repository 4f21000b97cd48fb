"""One logger for scripts, containers and notebooks: a file a process, and the stream.

from mlstack.logger import get_logger
log = get_logger(__name__)
"""

import logging
import sys
import threading
from datetime import datetime
from pathlib import Path

from mlstack import settings
from mlstack.settings import LOG_DIR, LOG_LEVEL

FILE_FORMAT = "%(asctime)s | %(name)s | %(filename)s:%(lineno)d | %(funcName)s | %(levelname)s | %(message)s"
STREAM_FORMAT = "%(asctime)s | %(filename)s:%(lineno)d | %(levelname)s | %(message)s"

_lock = threading.Lock()
_started = datetime.now().astimezone()
_files: dict[Path, logging.Handler | None] = {}
_streams: list[logging.Handler] = []


class _Hiding(logging.Formatter):
    """Puts *** in the place of every secret that this process knows, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        # The longest first: one secret may begin with another.
        for secret in sorted(settings.secret_values(), key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


class _Stream(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stderr is now: notebooks and tests exchange it while the process runs."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def get_logger(name: str, log_dir: str | Path = LOG_DIR, log_level: str = LOG_LEVEL) -> logging.Logger:
    """The logger of this name, writing to `{log_dir}/%Y%m%d_%H%M%S.log` (the time the process started) and to stderr.

    Called again it is the same logger with the same handlers. Where `log_dir` cannot be written it warns once and
    goes on with the stream alone. Raises SettingsError for an unknown level.
    """
    level = settings.log_level(log_level)
    with _lock:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        # Handlers of parents (Jupyter and pytest have some on the root) would print every line again.
        logger.propagate = False
        folder = settings.log_dir(log_dir)
        first_time = folder not in _files
        if first_time:
            _files[folder] = _file_handler(folder)
        wanted = [handler for handler in (_stream_handler(), _files[folder]) if handler]
        for handler in [handler for handler in logger.handlers if handler not in wanted]:
            logger.removeHandler(handler)
        for handler in wanted:
            logger.addHandler(handler)  # adds nothing twice
    if first_time and _files[folder] is None:
        logger.warning(
            "LOG_DIR %s cannot be written: logging to the stream only. Fix: chown or chmod it, or set LOG_DIR.", folder
        )
    return logger


def _stream_handler() -> logging.Handler:
    if not _streams:
        handler = _Stream()
        handler.setFormatter(_Hiding(STREAM_FORMAT))
        _streams.append(handler)
    return _streams[0]


def _file_handler(folder: Path) -> logging.Handler | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Opened for appending: processes that start in the same second share a file, line by line.
        handler = logging.FileHandler(folder / f"{_started:%Y%m%d_%H%M%S}.log", encoding="utf-8")
    except OSError:
        return None
    handler.setFormatter(_Hiding(FILE_FORMAT))
    return handler
