"""A user's own packages of PyPI for Jupyter's image: locked with hashes, to versions that fit the image's other packages."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mlstack import settings
from mlstack.errors import MlstackError
from mlstack.host.stack import Stack
from mlstack.logger import get_logger

log = get_logger("mlstack.packages")

LOCK = "requirements/extra.txt"
# What the image has already; none of it is replaced.
IMAGE = "requirements/notebook.txt"
PYTHON = "3.13"  # of the image


def lock(stack: Stack, sources: Mapping[str, str]) -> None:
    """Writes the lock of JUPYTER_EXTRA_REQUIREMENTS where it is missing or older, and removes it where none are wanted.

    Raises MlstackError when the file is missing, or uv finds no versions that fit.
    """
    name = stack.values.get("JUPYTER_EXTRA_REQUIREMENTS")
    target = stack.folder / LOCK
    if not name:
        target.unlink(missing_ok=True)
        return
    wanted = stack.folder / name
    if not wanted.is_file():
        raise MlstackError(
            f"JUPYTER_EXTRA_REQUIREMENTS={name} is not a file.",
            "Its packages cannot be built into Jupyter's image.",
            f"write one package in each line of {wanted}, or set JUPYTER_EXTRA_REQUIREMENTS= in .env",
        )
    command = f"make up # {_fingerprint(wanted, stack.folder / IMAGE)}"
    if target.exists() and command in target.read_text(encoding="utf-8"):
        return
    log.info("locking the packages of %s", name)
    flags = ("--quiet", "--universal", "--generate-hashes", "--python-version", PYTHON, "--custom-compile-command", command)
    index = {"UV_DEFAULT_INDEX": sources["PIP_INDEX_URL"]} if sources.get("PIP_INDEX_URL") else {}
    done = subprocess.run(
        [_uv(), "pip", "compile", *flags, "--constraints", stack.folder / IMAGE, "--output-file", target, wanted],
        cwd=stack.folder,
        # Locking needs no Python 3.13 on the host: uv would try to download one, for 10 s where that is blocked.
        env=settings.for_commands(UV_SYSTEM_CERTS="true", UV_PYTHON_DOWNLOADS="never", **index),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MlstackError(
            f"the packages of {name} cannot be locked: {' '.join(done.stderr.split())[-600:]}",
            "Jupyter's image is built with exact versions only.",
            f"change {wanted}: the versions have to fit those of {IMAGE}",
        )


def _fingerprint(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _uv() -> str:
    """The host's uv, or the one that scripts/venv.sh has obtained."""
    return shutil.which("uv") or str(Path(sys.prefix, "uv/bin/uv"))
