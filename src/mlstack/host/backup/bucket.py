"""The bucket's half of a backup: every object as it was at the time of the dump.

The bucket keeps versions, so this needs no pause: what is overwritten or deleted while the copy runs is still there.
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

BATCH = 256  # objects that are noted in the journal together
_SHOWN = 5
PART = 16 * 1024 * 1024  # of a large upload; two are in memory at once, for each connection
# What tells one content of a key from another.
Identity = tuple[str, str, str, int]

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Version:
    """One content that a key has, or had."""

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
    """What the bucket held at `time`: of each key the newest version that is not newer, unless that is a deletion."""
    newest: dict[str, Any] = {}
    for found in client.list_objects(bucket, recursive=True, include_version=True):
        if found.last_modified <= time and (
            found.object_name not in newest or newest[found.object_name].last_modified < found.last_modified
        ):
            newest[found.object_name] = found
    return [_version(found) for found in newest.values() if not found.is_delete_marker]


def current(client: Minio, bucket: str) -> dict[str, Version]:
    """What the bucket holds now, by key."""
    found = client.list_objects(bucket, recursive=True, include_version=True)
    return {item.object_name: _version(item) for item in found if item.is_latest == "true" and not item.is_delete_marker}


def ids(client: Minio, bucket: str) -> dict[str, list[str]]:
    """Of each key the ids of all its versions and deletion markers."""
    found: dict[str, list[str]] = {}
    for item in client.list_objects(bucket, recursive=True, include_version=True):
        found.setdefault(item.object_name or "", []).append(item.version_id or "null")
    return found


def is_versioned(client: Minio, bucket: str) -> bool:
    """Whether what is overwritten stays readable."""
    return bool(client.get_bucket_versioning(bucket).status == "Enabled")


class Copy:
    """Copies versions into a folder, taking from earlier copies what is there already."""

    def __init__(self, client: Minio, bucket: str, folder: Path, advance: Advance) -> None:
        self._client, self._bucket, self._folder, self._advance = client, bucket, folder, advance
        self._stop = threading.Event()
        self.new_bytes = 0
        self._lock = threading.Lock()

    def run(
        self, versions: Iterable[Version], known: Mapping[Identity, tuple[Artifact, Path]], done: Callable[[Artifact], None]
    ) -> list[Artifact]:
        """Copies every version; `done` is told of each. `known` has artifacts of earlier copies and their folders."""

        def one(version: Version) -> Artifact:
            if self._stop.is_set():
                raise InterruptedError
            earlier = known.get(version.identity)
            artifact = (earlier and self._taken_over(*earlier)) or self._fetched(version)
            with self._lock:
                done(artifact)
            return artifact

        return list(each(one, versions, self._stop))

    def _taken_over(self, artifact: Artifact, source: Path) -> Artifact | None:
        """A file of an earlier backup, linked; read whole first, so that damage does not travel from backup to backup."""
        origin, target = source / artifact.path, self._folder / artifact.path
        try:
            if sha256_of(source, artifact.path, self._advance) != artifact.sha256:
                return None
        except OSError:  # missing, or something else in its place: it is read from the bucket again
            return None
        if origin != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(origin, target, follow_symlinks=False)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links, or a link too many
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
                for chunk in response.stream(CHUNK):
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
                "The bucket keeps versions, so somebody has removed this one for good.",
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
    """Makes the bucket hold these artifacts, as new versions of their keys, each noted in the journal."""
    stop = threading.Event()

    def one(artifact: Artifact) -> None:
        if stop.is_set():
            raise InterruptedError
        metadata: dict[str, str | list[str] | tuple[str]] = dict(artifact.headers)
        content_type = str(metadata.pop("content-type", "application/octet-stream"))
        with opened(folder, artifact.path) as file:
            written = client.put_object(
                bucket, artifact.key, file, artifact.size, content_type, metadata, part_size=PART, num_parallel_uploads=2
            )  # fmt: skip
        journal.wrote(artifact.key, written.version_id or "null")
        advance(artifact.size)

    for start in range(0, len(artifacts), BATCH):
        batch = artifacts[start : start + BATCH]
        journal.intend([artifact.key for artifact in batch], before)
        for _ in each(one, batch, stop):
            pass
        stop.clear()  # only an error or Ctrl-C gets past it


def differences(client: Minio, bucket: str, artifacts: Iterable[Artifact], advance: Advance) -> list[str]:
    """What the bucket holds otherwise than these artifacts, read whole; empty when it is the same."""
    stop = threading.Event()
    wanted = {artifact.key: artifact for artifact in artifacts}
    found = current(client, bucket)

    def one(artifact: Artifact) -> str | None:
        if stop.is_set():
            raise InterruptedError
        if artifact.key not in found:
            return f"the artifact {artifact.key} is missing"
        digest = hashlib.sha256()
        response = client.get_object(bucket, artifact.key)
        try:
            for chunk in response.stream(CHUNK):
                digest.update(chunk)
                advance(len(chunk))
        finally:
            response.close()
            response.release_conn()
        return None if digest.hexdigest() == artifact.sha256 else f"the artifact {artifact.key} is another one"

    complaints = [text for text in each(one, wanted.values(), stop) if text]
    return complaints + [f"the artifact {key} is not in the backup" for key in sorted(found.keys() - wanted.keys())]


def hide(client: Minio, bucket: str, keys: Iterable[str]) -> None:
    """Deletes keys as MLflow would: their versions stay."""
    _remove(client, bucket, [DeleteObject(key) for key in keys])


def remove(client: Minio, bucket: str, versions: Iterable[tuple[str, str]]) -> None:
    """Removes these versions, by key and id, for good: what was there before them shows again."""
    _remove(client, bucket, [DeleteObject(key, version) for key, version in versions])


def redate(client: Minio, bucket: str, clock: Callable[[], datetime]) -> None:
    """Gives every version that is dated in the future the date of now, and names it. Its content stays what the bucket shows.

    Only whoever holds a key of the storage can make one. It would hide later uploads from everybody, a backup and a restore.
    """
    listed = list(client.list_objects(bucket, recursive=True, include_version=True))
    now = clock()  # that of Postgres, which MinIO shares; after the listing
    ahead = [item for item in listed if item.last_modified > now]
    if not ahead:
        return
    named = ", ".join(f"{item.object_name} ({item.last_modified:%Y-%m-%d})" for item in ahead[:_SHOWN])
    log.warning("%d versions are dated in the future and get the date of now: %s", len(ahead), named)
    for item in sorted(ahead, key=lambda item: item.last_modified):
        # The new one first: interrupted, there are two and none is lost.
        if item.is_delete_marker:
            client.remove_object(bucket, item.object_name)
        else:
            client.copy_object(bucket, item.object_name, CopySource(bucket, item.object_name, version_id=item.version_id))
        client.remove_object(bucket, item.object_name, version_id=item.version_id)


def each(work: Callable[[Item], Result], items: Iterable[Item], stop: threading.Event) -> Iterator[Result]:
    """The results of `work` on every item, several at once. The first failure, or Ctrl-C, ends all of it soon."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    except S3Error as error:
        if error.code not in ("NoSuchVersion", "NoSuchKey"):
            raise
        raise MlstackError(
            f"the artifact {error.object_name} was removed for good while it was read.",
            "The bucket keeps versions, so somebody has deleted this one with the owner's keys.",
            "the same command again takes the bucket as it is then",
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _remove(client: Minio, bucket: str, doomed: list[DeleteObject]) -> None:
    for error in client.remove_objects(bucket, doomed):
        raise MlstackError(
            f"{error.name} could not be removed: {error.message}", "The bucket is not as wanted.", "docker compose logs minio"
        )


def _version(found: Any) -> Version:
    return Version(
        found.object_name, found.version_id or "null", (found.etag or "").strip('"'), found.size or 0, found.last_modified
    )  # fmt: skip
