"""What a backup holds, and whether that is still what was written.

backups/20261124T065000Z/
  manifest.json         versions, counts, checksums
  manifest.json.sha256  its own checksum, for `sha256sum --check`
  manifest.json.hmac    its signature with BACKUP_KEY (signature.py)
  database.dump         pg_dump's custom format, with the rights of MLflow's login; in format 1 the accounts too
  accounts.dump         the same of MLflow's accounts, with the rights of their login
  objects.jsonl         one line an artifact: its key, and the file that holds its bytes
  objects/ab/abcd…      the bytes, named by their SHA-256: no key ever becomes a file name
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mlstack.errors import MlstackError

FORMAT = 2
NAME_FORMAT = "%Y%m%dT%H%M%SZ"
MANIFEST, CHECKSUM, DUMP, ACCOUNTS_DUMP, OBJECTS_LIST, OBJECTS = (
    "manifest.json", "manifest.json.sha256", "database.dump", "accounts.dump", "objects.jsonl", "objects",
)  # fmt: skip
CHUNK = 1024 * 1024
WORKERS = 4
_NAME = re.compile(r"\d{8}T\d{6}Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Table:
    """A table's content: how many rows, and a checksum of them that does not depend on their order."""

    rows: int
    checksum: str


@dataclass(frozen=True)
class Artifact:
    """One object of the bucket, as it was at the time of the dump."""

    key: str
    version: str
    etag: str
    size: int
    sha256: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where its bytes are, within the backup."""
        return path_of(self.sha256)

    def as_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"


@dataclass(frozen=True)
class Manifest:
    """A backup's table of contents. `created` is the moment that it shows; `bytes` is its size as if it stood alone."""

    created: str
    bytes: int
    new_bytes: int
    versions: Mapping[str, str | None]
    bucket: str
    owners: Mapping[str, str]
    counts: Mapping[str, int]
    tables: Mapping[str, Table]
    files: Mapping[str, str]
    format: int = FORMAT

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.created)

    @property
    def dumps(self) -> tuple[str, ...]:
        """The files that hold the database."""
        return (DUMP, ACCOUNTS_DUMP) if ACCOUNTS_DUMP in self.files else (DUMP,)


@dataclass(frozen=True)
class Backup:
    """A complete backup on this machine, read."""

    folder: Path
    manifest: Manifest
    artifacts: tuple[Artifact, ...]


def path_of(sha256: str) -> str:
    """Where the bytes with this checksum are, within a backup."""
    return f"{OBJECTS}/{sha256[:2]}/{sha256}"


def folders(backups: Path) -> list[Path]:
    """The complete backups, the newest first."""
    found = [path for path in backups.iterdir() if _NAME.fullmatch(path.name)] if backups.is_dir() else []
    return sorted((path for path in found if (path / MANIFEST).is_file()), reverse=True)


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and its checksum."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / CHECKSUM).write_text(f"{digest}  {MANIFEST}\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup. Raises MlstackError when it is missing, damaged, or of a newer mlstack."""
    content = _content(folder, MANIFEST)
    try:
        found = json.loads(content)
        written_as = int(found["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder, [f"{MANIFEST} is not what was written: {error}"]) from error
    if written_as > FORMAT:
        raise MlstackError(
            f"{folder / MANIFEST} is in format {written_as}, written by mlstack"
            f" {found.get('versions', {}).get('mlstack', 'of a newer version')}; this one reads up to format {FORMAT}.",
            "Nothing was changed: an older mlstack cannot tell whether it would restore everything.",
            "update mlstack (git pull), then the same command",
        )
    expected = _content(folder, CHECKSUM).decode("ascii", "replace").partition(" ")[0]
    if hashlib.sha256(content).hexdigest() != expected:
        raise damaged(folder, [f"{MANIFEST} does not have the checksum in {CHECKSUM}"])
    try:
        return _manifest(found)
    except (KeyError, TypeError) as error:
        raise damaged(folder, [f"{MANIFEST} is not what mlstack writes: {error}"]) from error


def read(folder: Path) -> Backup:
    """A backup with the list of its artifacts. Raises MlstackError when either is missing or damaged."""
    manifest = read_manifest(folder)
    content = _content(folder, OBJECTS_LIST)
    if hashlib.sha256(content).hexdigest() != manifest.files[OBJECTS_LIST]:
        raise damaged(folder, [f"{OBJECTS_LIST} does not have its checksum"])
    try:
        return Backup(folder, manifest, tuple(artifacts_in(content.decode().splitlines())))
    except (ValueError, TypeError) as error:
        raise damaged(folder, [f"{OBJECTS_LIST} is not what mlstack writes: {error}"]) from error


def artifacts_in(lines: Iterable[str]) -> Iterator[Artifact]:
    """The artifacts of an objects.jsonl."""
    for line in lines:
        artifact = Artifact(**json.loads(line))
        if not _SHA256.fullmatch(artifact.sha256):
            raise ValueError(f"not a checksum: {artifact.sha256}")
        yield artifact


def check(backup: Backup, advance: Advance) -> None:
    """Reads every file of a backup. Raises MlstackError naming those that are missing or not what was written."""
    expected = {name: backup.manifest.files[name] for name in backup.manifest.dumps}
    expected |= {artifact.path: artifact.sha256 for artifact in backup.artifacts}
    used_by = {artifact.path: artifact.key for artifact in backup.artifacts}

    def complaint(name: str) -> str | None:
        what = f"{name} (artifact {used_by[name]})" if name in used_by else name
        try:
            found = sha256_of(backup.folder / name, advance)
        except FileNotFoundError:
            return f"{what} is missing"
        except OSError as error:
            return f"{what} cannot be read: {error.strerror}"
        return None if found == expected[name] else f"{what} does not have its checksum"

    pool = ThreadPoolExecutor(WORKERS)
    try:
        complaints = [text for text in pool.map(complaint, expected) if text]
    finally:
        pool.shutdown(cancel_futures=True)
    if complaints:
        raise damaged(backup.folder, complaints)


def sha256_of(path: Path, advance: Advance = lambda _: None) -> str:
    """The checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def damaged(folder: Path, complaints: list[str]) -> MlstackError:
    """The refusal of a backup that is not what was written."""
    more = f"; and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
    return MlstackError(
        f"the backup {folder} is damaged: {'; '.join(complaints[:_SHOWN])}{more}.",
        "Nothing was changed: a part of the work would be missing or wrong.",
        "take another backup (make restore lists them), or another copy of this one",
    )


def _content(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise damaged(folder, [f"{name} is missing"]) from None
    except OSError as error:
        raise damaged(folder, [f"{name} cannot be read: {error.strerror}"]) from error


def _manifest(found: dict[str, Any]) -> Manifest:
    tables = {name: Table(**table) for name, table in found.pop("tables").items()}
    return Manifest(**found, tables=tables)
