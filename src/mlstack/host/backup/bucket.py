"""A bucket's part of a backup: every object as it was at the time of the dump.

The buckets keep versions, so the stack need not pause: what is overwritten or deleted during the copy is still readable.
"""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.host.backup import log
from mlstack.host.backup.data_services import CONNECTIONS
from mlstack.host.backup.journal import Ids, Journal
from mlstack.host.backup.manifest import (
    CHUNK,
    KEPT_HEADERS,
    METADATA,
    OBJECTS,
    Advance,
    Artifact,
    opened,
    path_of,
    sha256_of,
)  # fmt: skip

BATCH = 256  # objects that are recorded in the journal together
_SHOWN = 5
PART = 16 * 1024 * 1024  # of a large upload; two are in memory at once, for each connection
# Identifies one content of a key.
Identity = tuple[str, str, str, int]

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Version:
    """One version of an object."""

    key: str
    version: str
    etag: str
    size: int
    time: datetime

    @property
    def identity(self) -> Identity:
        return (self.key, self.version, self.etag, self.size)


def identity(artifact: Artifact) -> Identity:
    """The version that an artifact of a backup was read from."""
    return (artifact.key, artifact.version, artifact.etag, artifact.size)


def as_of(client: Minio, bucket: str, time: datetime) -> list[Version]:
    """The bucket at `time`: the newest version of each key up to then, unless that is a delete marker."""
    newest: dict[str, s3.Version] = {}
    for item in s3.versions(client, bucket):
        if item.time <= time and (item.name not in newest or newest[item.name].time < item.time):
            newest[item.name] = item
    return [_version(item) for item in newest.values() if not item.is_marker]


def current(client: Minio, bucket: str) -> dict[str, Version]:
    """The current objects of the bucket, by key."""
    return {item.name: _version(item) for item in s3.versions(client, bucket) if item.is_latest and not item.is_marker}


def ids(client: Minio, bucket: str) -> dict[str, list[str]]:
    """The ids of all versions and delete markers of each key."""
    by_key: dict[str, list[str]] = {}
    for item in s3.versions(client, bucket):
        by_key.setdefault(item.name, []).append(item.id)
    return by_key


def is_versioned(client: Minio, bucket: str) -> bool:
    """Whether the bucket keeps overwritten versions."""
    return bool(client.get_bucket_versioning(bucket).status == "Enabled")


class Copy:
    """Copies versions into a folder; files of earlier copies are reused."""

    def __init__(self, client: Minio, bucket: str, folder: Path, advance: Advance) -> None:
        self._client, self._bucket, self._folder, self._advance = client, bucket, folder, advance
        self._stop = threading.Event()
        self.new_bytes = 0
        self._lock = threading.Lock()

    def run(
        self, versions: Iterable[Version], known: Mapping[Identity, tuple[Artifact, Path]], done: Callable[[Artifact], None]
    ) -> list[Artifact]:
        """Copies every version and calls `done` for each. `known` has artifacts of earlier copies and their folders."""

        def copy_version(version: Version) -> Artifact:
            if self._stop.is_set():
                raise InterruptedError
            earlier = known.get(version.identity)
            artifact = (earlier and self._taken_over(*earlier)) or self._fetched(version)
            with self._lock:
                done(artifact)
            return artifact

        return list(in_parallel(copy_version, versions, self._stop))

    def _taken_over(self, artifact: Artifact, source: Path) -> Artifact | None:
        """A hard link to a file of an earlier backup, which is read first, so that damage is not copied."""
        origin, target = source / artifact.path, self._folder / artifact.path
        try:
            if sha256_of(source, artifact.path, self._advance) != artifact.sha256:
                return None
        except OSError:  # missing or not a file: it is read from the bucket again
            return None
        if origin != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(origin, target, follow_symlinks=False)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links, or too many links
                self._placed(target, lambda file: shutil.copyfileobj(opened(source, artifact.path), file, CHUNK))
        return artifact

    def _fetched(self, version: Version) -> Artifact:
        digest = hashlib.sha256()
        headers: dict[str, str] = {}
        received = 0

        def receive(file: Any) -> None:
            nonlocal received
            response = self._client.get_object(self._bucket, version.key, version_id=version.version)
            try:
                headers.update({name.lower(): value for name, value in response.headers.items()})
                for chunk in response.stream(CHUNK, decode_content=False):
                    if self._stop.is_set():
                        raise InterruptedError
                    digest.update(chunk)
                    file.write(chunk)
                    received += len(chunk)
                    self._advance(len(chunk))
            finally:
                response.close()
                response.release_conn()

        with tempfile.NamedTemporaryFile(dir=self._folder / OBJECTS, prefix=".part-", delete=False) as file:
            part = Path(file.name)
            try:
                receive(file)
            except BaseException:
                part.unlink()
                raise
        if received != version.size or headers.get("etag", "").strip('"') != version.etag:
            part.unlink()
            raise MlstackError(
                f"the artifact {version.key} changed while it was read: {received} bytes instead of {version.size}.",
                "The bucket keeps versions, so it was removed with the owner's keys.",
                "the same command again takes the bucket as it is then",
            )
        target = self._folder / path_of(digest.hexdigest())
        target.parent.mkdir(parents=True, exist_ok=True)
        part.chmod(0o400)
        part.replace(target)
        with self._lock:
            self.new_bytes += received
        kept = {name: value for name, value in headers.items() if name in KEPT_HEADERS or name.startswith(METADATA)}
        return Artifact(version.key, version.version, version.etag, version.size, digest.hexdigest(), kept)

    def _placed(self, target: Path, fill: Callable[[Any], object]) -> None:
        with tempfile.NamedTemporaryFile(dir=self._folder / OBJECTS, prefix=".part-", delete=False) as file:
            fill(file)
        Path(file.name).replace(target)
        with self._lock:
            self.new_bytes += target.stat().st_size


def upload(
    client: Minio, bucket: str, folder: Path, artifacts: Sequence[Artifact], *, journal: Journal, before: Ids, advance: Advance
) -> None:
    """Writes these artifacts into the bucket, as new versions of their keys, each recorded in the journal."""
    stop = threading.Event()

    def upload_artifact(artifact: Artifact) -> None:
        if stop.is_set():
            raise InterruptedError
        metadata: dict[str, str | list[str] | tuple[str]] = dict(artifact.headers)
        content_type = str(metadata.pop("content-type", "application/octet-stream"))
        with opened(folder, artifact.path) as file:
            written = client.put_object(
                bucket, artifact.key, file, artifact.size, content_type, metadata, part_size=PART, num_parallel_uploads=2
            )  # fmt: skip
        journal.wrote(bucket, artifact.key, written.version_id or "null")
        advance(artifact.size)

    for start in range(0, len(artifacts), BATCH):
        batch = artifacts[start : start + BATCH]
        journal.intend(bucket, [artifact.key for artifact in batch], before)
        for _ in in_parallel(upload_artifact, batch, stop):
            pass
        stop.clear()  # reached only after an error or Ctrl-C


def differences(client: Minio, bucket: str, artifacts: Iterable[Artifact], advance: Advance) -> list[str]:
    """How the bucket differs from these artifacts, which are read completely; empty when it does not."""
    stop = threading.Event()
    expected = {artifact.key: artifact for artifact in artifacts}
    stored = current(client, bucket)

    def difference(artifact: Artifact) -> str | None:
        if stop.is_set():
            raise InterruptedError
        if artifact.key not in stored:
            return f"the artifact {artifact.key} is missing"
        digest = hashlib.sha256()
        response = client.get_object(bucket, artifact.key)
        try:
            for chunk in response.stream(CHUNK, decode_content=False):
                digest.update(chunk)
                advance(len(chunk))
        finally:
            response.close()
            response.release_conn()
        return None if digest.hexdigest() == artifact.sha256 else f"the artifact {artifact.key} differs"

    complaints = [text for text in in_parallel(difference, expected.values(), stop) if text]
    return complaints + [f"the artifact {key} is not in the backup" for key in sorted(stored.keys() - expected.keys())]


def hide(client: Minio, bucket: str, keys: Iterable[str]) -> None:
    """Deletes keys as MLflow would: their versions are kept."""
    _remove(client, bucket, [DeleteObject(key) for key in keys])


def remove(client: Minio, bucket: str, versions: Iterable[tuple[str, str]]) -> None:
    """Removes these versions permanently, by key and id: older versions are current again."""
    _remove(client, bucket, [DeleteObject(key, version) for key, version in versions])


def redate(client: Minio, bucket: str, clock: Callable[[], datetime]) -> None:
    """Gives every version that is dated in the future today's date, and returns its key. The current content stays the same.

    Only a holder of a key of MinIO can create one. It would hide later uploads from clients, backups and restores.
    """
    listed = list(s3.versions(client, bucket))
    now = clock()  # that of Postgres, which MinIO shares; after the listing
    ahead = [item for item in listed if item.time > now]
    if not ahead:
        return
    named = ", ".join(f"{item.name} ({item.time:%Y-%m-%d})" for item in ahead[:_SHOWN])
    log.warning("%d versions are dated in the future and get the date of now: %s", len(ahead), named)
    for item in sorted(ahead, key=lambda item: item.time):
        # The new version first: if interrupted, there are two and none is lost.
        if item.is_marker:
            client.remove_object(bucket, item.name)
        else:
            client.copy_object(bucket, item.name, CopySource(bucket, item.name, version_id=item.id))
        client.remove_object(bucket, item.name, version_id=item.id)


def in_parallel(work: Callable[[Item], Result], items: Iterable[Item], stop: threading.Event) -> Iterator[Result]:
    """The results of `work` on every item, in parallel. The first failure, or Ctrl-C, stops the rest."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    except S3Error as error:
        if error.code not in ("NoSuchVersion", "NoSuchKey"):
            raise
        raise MlstackError(
            f"the artifact {error.object_name} was removed permanently while it was read.",
            "The bucket keeps versions, so it was deleted with the owner's keys.",
            "the same command again takes the bucket as it is then",
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _remove(client: Minio, bucket: str, doomed: list[DeleteObject]) -> None:
    for error in client.remove_objects(bucket, doomed):
        raise MlstackError(
            f"{error.name} could not be removed: {error.message}",
            "The bucket may have objects that should be gone.",
            "docker compose logs minio",
        )


def _version(item: s3.Version) -> Version:
    return Version(item.name, item.id, item.etag, item.size, item.time)
