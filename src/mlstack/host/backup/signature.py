"""The signature of a backup: an HMAC of its manifest, which has the checksums of all other files."""

import hmac
from pathlib import Path

from mlstack.host.backup.manifest import MANIFEST

SIGNATURE = f"{MANIFEST}.hmac"
_LONGEST = 200  # bytes: longer than a signature


def sign(folder: Path, key: str) -> None:
    """Signs a backup with a stack's BACKUP_KEY."""
    whole = folder / f".{SIGNATURE}"
    whole.write_text(_signature(folder, key) + "\n", encoding="ascii")
    whole.chmod(0o600)
    whole.replace(folder / SIGNATURE)


def is_authentic(folder: Path, key: str) -> bool:
    """Whether a stack with this BACKUP_KEY wrote the manifest of a backup."""
    path = folder / SIGNATURE
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return hmac.compare_digest(file.read(_LONGEST).strip(), _signature(folder, key).encode())


def _signature(folder: Path, key: str) -> str:
    return hmac.new(key.encode(), (folder / MANIFEST).read_bytes(), "sha256").hexdigest()
