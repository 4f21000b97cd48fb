"""The content of a backup, and whether it is unchanged.

A backup may come from an attacker: nothing in it is trusted before it is checked, no link is followed, and no pipe is waited
for.

backups/20261124T065000Z/
  manifest.json         versions, counts, checksums
  manifest.json.sha256  its own checksum, for `sha256sum --check`
  manifest.json.hmac    its signature with BACKUP_KEY (signature.py)
  database.dump         pg_dump's custom format, with the rights of MLflow's login; in format 1 the accounts too
  accounts.dump         the same of MLflow's accounts, with the rights of their login
  serving.dump          the same of the part `scoring`: decisions, labels, policies and features; if there are any
  objects.jsonl         one line an artifact: its key, and the file that holds its bytes
  datasets.jsonl        the same of the bucket for data sets; not in formats 1 and 2
  objects/ab/abcd…      the bytes, named by their SHA-256: no key ever becomes a file name
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

from mlstack import __version__
from mlstack.errors import MlstackError, quoted

FORMAT = 4
NAME_FORMAT = "%Y%m%dT%H%M%SZ"
MANIFEST, CHECKSUM, DUMP, ACCOUNTS_DUMP, SERVING_DUMP, OBJECTS_LIST, DATASETS_LIST, OBJECTS = (
    "manifest.json", "manifest.json.sha256", "database.dump", "accounts.dump", "serving.dump", "objects.jsonl",
    "datasets.jsonl", "objects",
)  # fmt: skip
CHUNK = 1024 * 1024
WORKERS = 4
_WITHOUT_DATASETS = 2  # the last such format
_NAME = re.compile(r"\d{8}T\d{6}Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 5
# mlstack writes far less; a larger file is an attempt to fill the memory.
_LARGEST_MANIFEST, _LONGEST_LINE, _LONGEST_KEY = 16 * 1024 * 1024, 64 * 1024, 1024
# The headers that belong to an object, not to the response.
KEPT_HEADERS = ("content-type", "content-encoding", "content-disposition", "content-language", "cache-control")
METADATA = "x-amz-meta-"

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Table:
    """A table's content: how many rows, and a checksum of them that does not depend on their order."""

    rows: int
    checksum: str


@dataclass(frozen=True)
class Artifact:
    """One object of a bucket, as it was at the time of the dump."""

    key: str
    version: str
    etag: str
    size: int
    sha256: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The path of its bytes in the backup."""
        return path_of(self.sha256)

    def as_line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"


@dataclass(frozen=True)
class Manifest:
    """A backup's table of contents. `created` is its point in time; `bytes` is its size without sharing files."""

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
    def made_by(self) -> str:
        """The mlstack that created it."""
        return f"mlstack {self.versions.get('mlstack') or 'of an unknown version'}"

    @property
    def dumps(self) -> tuple[str, ...]:
        """The files of the database."""
        return (DUMP, *(name for name in (ACCOUNTS_DUMP, SERVING_DUMP) if name in self.files))


@dataclass(frozen=True)
class Backup:
    """A complete backup on the host. `datasets` are the objects of the data sets; None in a backup from before there were any."""

    folder: Path
    manifest: Manifest
    artifacts: tuple[Artifact, ...]
    datasets: tuple[Artifact, ...] | None

    @property
    def objects(self) -> tuple[Artifact, ...]:
        """Those of both buckets."""
        return self.artifacts + (self.datasets or ())


def path_of(sha256: str) -> str:
    """The path of the bytes with this checksum in a backup."""
    return f"{OBJECTS}/{sha256[:2]}/{sha256}"


def folders(backups: Path) -> list[Path]:
    """The complete backups, the newest first."""
    complete = [path for path in backups.iterdir() if _NAME.fullmatch(path.name)] if backups.is_dir() else []
    return sorted((path for path in complete if (path / MANIFEST).is_file()), reverse=True)


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
        fields_of_file = _parsed(content)
        written_as = _typed(int, fields_of_file["format"], "format") if isinstance(fields_of_file, dict) else 0
    except (ValueError, KeyError) as error:
        raise damaged(folder, [f"{MANIFEST} is not what was written: {error}"]) from error
    if written_as > FORMAT:
        versions = fields_of_file.get("versions")
        maker = quoted(str(versions.get("mlstack"))) if isinstance(versions, dict) else "of a newer version"
        raise MlstackError(
            f"{folder / MANIFEST} is in format {written_as}, written by mlstack {maker}; this is mlstack {__version__}, which"
            f" reads up to format {FORMAT}.",
            "Nothing was changed: an older mlstack cannot tell whether it would restore everything.",
            "update mlstack (git pull), then the same command",
        )
    expected = _content(folder, CHECKSUM).decode("ascii", "replace").partition(" ")[0]
    if hashlib.sha256(content).hexdigest() != expected:
        raise damaged(folder, [f"{MANIFEST} does not have the checksum in {CHECKSUM}"])
    try:
        return _sound_manifest(_typed(Manifest, fields_of_file, "it"))
    except ValueError as error:
        raise damaged(folder, [f"{MANIFEST} is not what mlstack writes: {error}"]) from error


def read(folder: Path) -> Backup:
    """A backup with the list of its artifacts. Raises MlstackError when either is missing or damaged."""
    manifest = read_manifest(folder)
    datasets = _listed(folder, manifest, DATASETS_LIST) if DATASETS_LIST in manifest.files else None
    return Backup(folder, manifest, _listed(folder, manifest, OBJECTS_LIST), datasets)


def _listed(folder: Path, manifest: Manifest, name: str) -> tuple[Artifact, ...]:
    """The objects in a list of a backup."""
    digest = hashlib.sha256()
    try:
        with opened(folder, name) as file:
            artifacts = _of_different_keys(artifacts_in(_lines(file, digest.update)))
    except FileNotFoundError:
        raise damaged(folder, [f"{name} is missing"]) from None
    except OSError as error:
        raise damaged(folder, [f"{name} cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise damaged(folder, [f"{name} is not what mlstack writes: {error}"]) from error
    if digest.hexdigest() != manifest.files[name]:
        raise damaged(folder, [f"{name} does not have its checksum"])
    return artifacts


def artifacts_in(lines: Iterable[str]) -> Iterator[Artifact]:
    """The artifacts of an objects.jsonl. Raises ValueError for a line that mlstack does not write."""
    for line in lines:
        yield _sound_artifact(_typed(Artifact, _parsed(line), "a line"))


def check(backup: Backup, advance: Advance) -> None:
    """Reads every file of a backup. Raises MlstackError naming missing or changed files."""
    expected = {name: backup.manifest.files[name] for name in backup.manifest.dumps}
    expected |= {artifact.path: artifact.sha256 for artifact in backup.objects}
    used_by: dict[str, list[Artifact]] = {}
    for artifact in backup.objects:
        used_by.setdefault(artifact.path, []).append(artifact)

    def complaint(name: str) -> str | None:
        users = used_by.get(name, [])
        description = f"{name} (artifact {users[0].key})" if users else name
        try:
            with opened(backup.folder, name) as file:
                size = os.fstat(file.fileno()).st_size
                digest = _digest(file, advance)
        except FileNotFoundError:
            return f"{description} is missing"
        except OSError as error:
            return f"{description} cannot be read: {error.strerror}"
        if digest != expected[name]:
            return f"{description} does not have its checksum"
        wrong = next((artifact for artifact in users if artifact.size != size), None)
        return f"{name} has {size} bytes, and not {wrong.size} as the line of {wrong.key} says" if wrong else None

    pool = ThreadPoolExecutor(WORKERS)
    try:
        complaints = [text for text in pool.map(complaint, expected) if text]
    finally:
        pool.shutdown(cancel_futures=True)
    if complaints:
        raise damaged(backup.folder, complaints)


def opened(folder: Path, name: str) -> BinaryIO:
    """Opens a file of a backup. Raises OSError unless it is a regular file in folders that are no links.

    A pipe would block, a device could do anything, and a link would show another file.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in name.split("/"):
            _require(os.stat(part, dir_fd=descriptor, follow_symlinks=False), stat.S_IFREG, stat.S_IFDIR)
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        _require(os.fstat(descriptor), stat.S_IFREG)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def _require(status: os.stat_result, *kinds: int) -> None:
    if stat.S_IFMT(status.st_mode) not in kinds:
        raise OSError(errno.EINVAL, "it is not a regular file")


def sha256_of(folder: Path, name: str, advance: Advance = lambda _: None) -> str:
    """The checksum of a file of a backup. Raises OSError as `opened` does."""
    with opened(folder, name) as file:
        return _digest(file, advance)


def _digest(file: BinaryIO, advance: Advance) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        advance(len(chunk))
    return digest.hexdigest()


def damaged(folder: Path, complaints: list[str]) -> MlstackError:
    """The error for a backup that is missing a file or was changed."""
    more = f"; and {len(complaints) - _SHOWN} more" if len(complaints) > _SHOWN else ""
    return MlstackError(
        f"the backup {folder} is damaged: {'; '.join(complaints[:_SHOWN])}{more}.",
        "Nothing was changed: a part of the work would be missing or wrong.",
        "take another backup (make restore lists them), or another copy of this one",
    )


def _content(folder: Path, name: str) -> bytes:
    try:
        with opened(folder, name) as file:
            content = file.read(_LARGEST_MANIFEST + 1)
    except FileNotFoundError:
        raise damaged(folder, [f"{name} is missing"]) from None
    except OSError as error:
        raise damaged(folder, [f"{name} cannot be read: {error.strerror}"]) from error
    if len(content) > _LARGEST_MANIFEST:
        raise damaged(folder, [f"{name} is larger than {_LARGEST_MANIFEST} bytes"])
    return content


def _lines(file: BinaryIO, read: Callable[[bytes], object]) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE} bytes")
        read(line)
        yield line.decode()


# ---- what came out of a file, as what it should be: each of these raises ValueError -------------


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _typed(kind: Any, value: Any, place: str) -> Any:
    """A JSON value converted to its type. Raises ValueError for another type."""
    if is_dataclass(kind):
        types, needed = _fields(kind)  # type: ignore[arg-type]
        if not isinstance(value, dict) or not needed <= value.keys() <= types.keys():
            raise ValueError(f"{place} has other fields than {', '.join(types)}")
        return kind(**{name: _typed(types[name], item, name) for name, item in value.items()})  # type: ignore[operator]
    if get_origin(kind) is Mapping:
        _, kind_of_value = get_args(kind)
        return {name: _typed(kind_of_value, item, place) for name, item in _typed(dict, value, place).items()}
    kinds = get_args(kind) or (kind,)
    if type(value) not in kinds or (type(value) is int and value < 0):
        raise ValueError(f"{place} is not of the type {' or '.join(expected_kind.__name__ for expected_kind in kinds)}")
    return value


@cache
def _fields(kind: type[Any]) -> tuple[dict[str, Any], set[str]]:
    needed = {
        class_field.name
        for class_field in fields(kind)
        if class_field.default is MISSING and class_field.default_factory is MISSING
    }
    return get_type_hints(kind), needed


def _sound_manifest(manifest: Manifest) -> Manifest:
    if manifest.time.tzinfo is None:
        raise ValueError("created has no time zone")
    lists = (DUMP, OBJECTS_LIST, DATASETS_LIST) if manifest.format > _WITHOUT_DATASETS else (DUMP, OBJECTS_LIST)
    if lacking := [name for name in lists if not _SHA256.fullmatch(manifest.files.get(name, ""))]:
        raise ValueError(f"it has no checksum of {', '.join(lacking)}")
    if lacking := [name for name in ("mlflow", "postgres") if name not in manifest.versions]:
        raise ValueError(f"it has no version of {', '.join(lacking)}")
    shown = [*manifest.versions.values(), *manifest.counts, *manifest.owners, *manifest.tables, manifest.bucket]
    if odd := [text for text in shown if text is not None and (len(text) > _LONGEST_KEY or not text.isprintable())]:
        raise ValueError(f"it has an impossible name: {odd[0][:80]}")
    return manifest


def _of_different_keys(artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    by_key: dict[str, Artifact] = {}
    for artifact in artifacts:
        if artifact.key in by_key:
            raise ValueError(f"it has the key {artifact.key[:80]} twice")
        by_key[artifact.key] = artifact
    return tuple(by_key.values())


def _sound_artifact(artifact: Artifact) -> Artifact:
    if not _SHA256.fullmatch(artifact.sha256):
        raise ValueError(f"not a checksum: {artifact.sha256[:80]}")
    parts = artifact.key.removesuffix("/").split("/")  # a folder that an S3 client created ends with /
    if any(part in ("", ".", "..") for part in parts) or "\0" in artifact.key or len(artifact.key.encode()) > _LONGEST_KEY:
        raise ValueError(f"no bucket can hold a key like {artifact.key[:80]}")
    for name, value in artifact.headers.items():
        if not (name in KEPT_HEADERS or name.startswith(METADATA)) or re.search(r"[\r\n\0]", name + value):
            raise ValueError(f"{artifact.key[:80]} has a header that no object has: {name[:80]}")
    return artifact
