"""Artifacts of the source, copied into the stack's bucket to where MLflow looks for them.

Only files below the roots of the source are read, whatever its rows say: a folder from elsewhere could name any file of the host.
"""

import hashlib
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from minio import Minio
from minio.error import S3Error

from mlstack.errors import MlstackError
from mlstack.host.backup.bucket import in_parallel
from mlstack.host.importing import server
from mlstack.host.importing.rows import SHOWN, Compared
from mlstack.manifests import etag_of

PART = 64 * 1024 * 1024  # bytes; a larger file is uploaded in parts
_LOCAL = ("", "file", "mlflow-artifacts")
_BAD_NAME = "XMinioInvalidObjectName"
_FOLDERS = (
    "SELECT run_uuid, artifact_uri FROM runs UNION ALL SELECT model_id, artifact_location FROM logged_models"
    " UNION ALL SELECT request_id, value FROM trace_tags WHERE key = 'mlflow.artifactLocation'"
)
_RUN = re.compile(r"[0-9a-f]{32}")
_SHORTEST, _LONGEST = 2, 4  # parts of a path that end in <experiment>/models/<id>/artifacts or in <id>/artifacts


@dataclass(frozen=True)
class File:
    """A file of a run, model or trace: a `path` on the host, or a file of a server's folder `uri`."""

    owner: str
    name: str
    size: int
    path: Path | None
    uri: str


def listed(
    rows: sqlite3.Connection, roots: Sequence[Path], url: str | None, problems: list[str], announce: Callable[[str], None]
) -> list[File]:
    """All files of the source. Adds to `problems` what cannot be read."""
    folders: list[tuple[str, str | None]] = rows.execute(_FOLDERS).fetchall()
    if url:
        return _listed_on_server(folders, url, problems, announce)
    announce("looking through the artifacts")
    return [file for owner, uri in folders for file in _listed_here(owner, uri or "", roots, problems)]


def _listed_here(owner: str, uri: str, roots: Sequence[Path], problems: list[str]) -> Iterator[File]:
    if urlsplit(uri).scheme not in _LOCAL:
        problems.append(f"{owner}: its artifacts are at {uri}; only a server that serves them can be asked for those")
        return
    folder = located(uri, roots)
    if folder is None:
        path = Path(unquote(urlsplit(uri).path))
        if path.is_absolute() and path.is_dir():
            problems.append(f"{owner}: its artifacts are outside of the source; ARTIFACTS={path.parent} would add them")
        return

    def failed(error: OSError) -> None:
        problems.append(f"{owner}: {error}")

    for parent, folders, names in os.walk(folder, onerror=failed):
        for name in (*names, *(name for name in folders if Path(parent, name).is_symlink())):
            path = Path(parent, name)
            if path.is_symlink() and (path.is_dir() or not _is_in(path.resolve(), roots)):
                problems.append(f"{owner}: {path} is a link to {path.resolve()}, which is not in the source")
            else:
                yield File(owner, path.relative_to(folder).as_posix(), path.lstat().st_size, path, uri)


def located(uri: str, roots: Sequence[Path]) -> Path | None:
    """The folder below one of the roots that an address of artifacts means: itself, or the same place after a move."""
    path = Path(unquote(urlsplit(uri).path))
    parts = path.parts
    tails = [Path(*parts[-count:]) for count in range(min(_LONGEST, len(parts)), _SHORTEST - 1, -1)]
    candidates = [path, *(root / tail for tail in tails if not tail.is_absolute() for root in roots)]
    for candidate in candidates:
        resolved = candidate.resolve()
        if resolved.is_dir() and resolved not in roots and _is_in(resolved, roots):
            return resolved
    return None


def _is_in(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _listed_on_server(
    folders: Sequence[tuple[str, str | None]], url: str, problems: list[str], announce: Callable[[str], None]
) -> list[File]:
    stop, counted = threading.Event(), 0

    def files_of(folder: tuple[str, str | None]) -> list[File]:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        owner, uri = folder
        if stop.is_set() or not uri:
            return []
        if not uri.startswith("mlflow-artifacts:/") or urlsplit(uri).netloc:
            # An address of a file would be one of this host, and one of another server would get the account.
            problems.append(
                f"{owner}: its artifacts are at {uri}; the server does not serve them (mlflow server --serve-artifacts)"
            )
            return []
        try:
            repository = get_artifact_repository(uri, tracking_uri=url)
            return [File(owner, name, size, None, uri) for name, size in _names(repository, None)]
        except (MlflowException, ImportError, OSError) as error:
            problems.append(f"{owner}: its artifacts at {uri} cannot be listed: {error}")
            return []

    files: list[File] = []
    with server.account(url):
        for some in in_parallel(files_of, folders, stop):
            files += some
            counted += 1
            if counted % server.PAGE == 0:
                announce(f"listing artifacts: {counted} of {len(folders)} folders")
    return files


def _names(repository: Any, folder: str | None) -> Iterator[tuple[str, int]]:
    """Raises OSError for a name that leads out of its folder."""
    for item in repository.list_artifacts(folder):
        if item.path.startswith("/") or ".." in item.path.split("/"):
            raise OSError(f"{item.path} is no name of a file in it")
        if item.is_dir:
            yield from _names(repository, item.path)
        else:
            yield item.path, item.file_size or 0


class Transfer:
    """Uploads files that the bucket lacks, and compares those that it has."""

    def __init__(self, client: Minio, bucket: str, locations: Mapping[str, str], staging: Path, url: str | None) -> None:
        self._client, self._bucket, self._locations, self._staging, self._url = client, bucket, locations, staging, url
        self._stop = threading.Event()
        self.problems: list[str] = []

    def run(self, files: Sequence[File], advance: Callable[[int], None]) -> Compared:
        """Copies the files; whatever was stored by an earlier run is compared. What exists is never overwritten."""
        stored = self._stored({file.owner for file in files})

        def transfer(file: File) -> tuple[str, str, str]:
            if self._stop.is_set():
                raise InterruptedError
            result = self._transferred(file, stored)
            advance(file.size)
            return result

        try:
            if self._url:
                with server.account(self._url):
                    results = list(in_parallel(transfer, files, self._stop))
            else:
                results = list(in_parallel(transfer, files, self._stop))
        except S3Error as error:
            raise MlstackError(
                f"MinIO did not store an artifact: {error.message}",
                "What is stored stays.",
                "fix that, then the same command again",
            ) from error
        equal = [result for result in results if result[1] == result[2]]
        return Compared(
            "artifacts",
            len(results),
            len([result for result in results if result[2]]),
            _checksum((key, expected) for key, expected, _ in results),
            _checksum((key, present) for key, _, present in results if present),
            tuple(sorted({key for key, *_ in results} - {key for key, *_ in equal})[:SHOWN]),
        )

    def _stored(self, owners: Iterable[str]) -> dict[str, tuple[str, int]]:
        """ETag and size of the objects in the experiments of these runs, models and traces, by key."""
        experiments = {_key(self._locations[owner]).partition("/")[0] for owner in owners}
        return {
            item.object_name or "": ((item.etag or "").strip('"'), item.size or 0)
            for experiment in experiments
            for item in self._client.list_objects(self._bucket, f"{experiment}/", recursive=True)
        }

    def _transferred(self, file: File, stored: Mapping[str, tuple[str, int]]) -> tuple[str, str, str]:
        """Key, expected ETag and the stored one; empty when there is none."""
        key = f"{_key(self._locations[file.owner])}/{file.name}"
        present, size = stored.get(key, ("", 0))
        if file.path is None and present and size == file.size:
            return key, present, present  # servers tell no checksum: those that are stored already are compared by size
        try:
            if file.path is not None:
                return self._uploaded(key, file.path, present)
            with tempfile.TemporaryDirectory(dir=self._staging) as folder:
                return self._uploaded(key, self._downloaded(file, folder), present)
        except S3Error as error:
            if error.code != _BAD_NAME:
                raise
            self.problems.append(f"{file.owner}: MinIO can store no object of the name {file.name}")
        except OSError as error:
            self.problems.append(f"{file.owner}: {file.name} cannot be read: {error}")
        return key, "unreadable", present

    def _downloaded(self, file: File, folder: str) -> Path:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        if _RUN.fullmatch(file.owner) and not file.name.isascii():
            # MLflow 2 answers its client with such a name in a header, which its own web server rejects; not so its page.
            return server.download_from_page(self._url or "", file.owner, file.name, Path(folder))
        try:
            return Path(get_artifact_repository(file.uri, tracking_uri=self._url).download_artifacts(file.name, folder))
        except MlflowException as error:
            raise OSError(error.message) from error

    def _uploaded(self, key: str, path: Path, present: str) -> tuple[str, str, str]:
        expected = etag_of(path, PART)
        if present:
            return key, expected, present
        with path.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            written = self._client.put_object(self._bucket, key, content, size, part_size=PART, num_parallel_uploads=2)
        return key, expected, (written.etag or "").strip('"')


def _key(location: str) -> str:
    """mlflow-artifacts:/1/…/artifacts is 1/…/artifacts in the bucket."""
    return urlsplit(location).path.strip("/")


def _checksum(entries: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for key, etag in sorted(entries):
        digest.update(f"{key} {etag}\n".encode())
    return digest.hexdigest()[:16]
