"""The shipped notebooks: originals in examples/, which Git tracks, and the user's copies in notebooks/, which it ignores.

A copy that was changed is never overwritten: saving a notebook blocks no `git pull`, and a newer version comes beside it.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mlstack.host import folders
from mlstack.host.stack import Stack
from mlstack.logger import get_logger

log = get_logger("mlstack.examples")

ORIGINALS = "examples"
RECORD = ".examples.json"  # what was last offered; not among the notebooks, where a container could change it
PORTS = {"5001": "MLFLOW_PORT", "8888": "JUPYTER_PORT"}


def offer(stack: Stack) -> None:
    """Copies what is new to `notebooks/`, with the ports of `.env`. Follows no link there. Raises OSError."""
    record_file = stack.folder / RECORD
    record = json.loads(record_file.read_text(encoding="utf-8")) if record_file.exists() else {}
    offered = dict(record)
    with folders.opened(stack.folder / "notebooks") as notebooks:
        for original in sorted((stack.folder / ORIGINALS).glob("*.ipynb")):
            text = with_ports(original.read_text(encoding="utf-8"), stack.values).encode()
            if record.get(original.name) != digest(text):
                _copy(notebooks, original.name, text, record.get(original.name))
                offered[original.name] = digest(text)
    if offered != record:
        record_file.write_text(json.dumps(offered, indent=1) + "\n", encoding="utf-8")


def with_ports(text: str, values: Mapping[str, str]) -> str:
    """The text of a notebook with this stack's ports in its addresses, in place of the default ones."""
    ports = "|".join(PORTS)
    return re.sub(rf"(127\.0\.0\.1|mlflow\.localhost):({ports})\b", lambda match: f"{match[1]}:{values[PORTS[match[2]]]}", text)


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _copy(notebooks: int, name: str, text: bytes, before: str | None) -> None:
    current = _digest_of(notebooks, name)
    if current == digest(text):
        return
    if current is not None and current == before:  # nobody has changed it
        os.unlink(name, dir_fd=notebooks)
    elif current is not None:
        own, name = name, f"{Path(name).stem}.{digest(text)[:8]}.ipynb"
        log.info("notebooks/%s has your changes and stays; the newer version is notebooks/%s", own, name)
        if _digest_of(notebooks, name) is not None:
            return
    with open(name, "xb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, 0o644, dir_fd=notebooks)) as file:
        file.write(text)


def _digest_of(folder: int, name: str) -> str | None:
    """Of a file, None where there is none; of whatever else has this name, a digest that no file has."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        try:
            return digest(file.read())
        except OSError:  # a folder
            return ""
