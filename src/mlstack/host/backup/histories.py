"""All versions and delete markers of a bucket, copied from one store to another and compared there."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import dropwhile
from typing import Any

from minio import Minio

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.host.backup.bucket import PART, in_parallel
from mlstack.host.backup.manifest import CHUNK, KEPT_HEADERS, METADATA, Advance

_SHOWN = 5
# Of each object, the oldest first: the SHA-256 of each version, and None for a delete marker.
Digests = Mapping[str, Sequence[str | None]]
Histories = Mapping[str, Sequence[s3.Version]]


def histories(client: Minio, bucket: str) -> Histories:
    """The versions and delete markers of each object, the oldest first. Markers before the first version say nothing."""
    in_order = {history[0].name: history[::-1] for history in s3.histories(client, bucket)}
    return {name: kept for name, history in in_order.items() if (kept := [*dropwhile(lambda item: item.is_marker, history)])}


def size_of(listed: Histories) -> int:
    """The bytes of all versions."""
    return sum(item.size for history in listed.values() for item in history)


def copy(source: Minio, target: Minio, bucket: str, listed: Histories, advance: Advance) -> Digests:
    """Writes each version and delete marker into the target, in order, with new ids and dates. Gives what was read."""
    stop = threading.Event()
    reader = partial(_Reader, advance, stop)

    def copy_history(name: str) -> tuple[str, list[str | None]]:
        return name, [_copied(source, target, bucket, item, reader) for item in listed[name]]

    return dict(in_parallel(copy_history, listed, stop))


def require_equal(target: Minio, bucket: str, expected: Digests, advance: Advance) -> None:
    """Reads every version in the target. Raises MlstackError naming the objects whose versions or markers are others."""
    stop, present = threading.Event(), histories(target, bucket)
    reader = partial(_Reader, advance, stop)

    def read_history(name: str) -> tuple[str, list[str | None]]:
        return name, [None if item.is_marker else _digest(target, bucket, item, reader) for item in present[name]]

    stored = dict(in_parallel(read_history, present, stop))
    if wrong := sorted(name for name in expected.keys() | stored.keys() if expected.get(name) != stored.get(name)):
        raise MlstackError(
            f"{len(wrong)} objects in the bucket {bucket} differ from what was copied: {', '.join(wrong[:_SHOWN])}.",
            "The other store would not have every version; it is not used.",
            "the same command again, which begins with an empty store",
        )


class _Reader:
    """A version's bytes as they are stored, for an upload; `digest` is that of what was read."""

    def __init__(self, advance: Advance, stop: threading.Event, response: Any) -> None:
        self._response, self._advance, self._stop = response, advance, stop
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        if self._stop.is_set():
            raise InterruptedError
        data: bytes = self._response.read(size, decode_content=False)
        self.digest.update(data)
        self._advance(len(data))
        return data


def _copied(source: Minio, target: Minio, bucket: str, item: s3.Version, reader: Callable[[Any], _Reader]) -> str | None:
    if item.is_marker:
        target.remove_object(bucket, item.name)
        return None
    response = source.get_object(bucket, item.name, version_id=item.id)
    try:
        headers = {name.lower(): value for name, value in response.headers.items()}
        kept: dict[str, str | list[str] | tuple[str]] = {
            name: value for name, value in headers.items() if name in KEPT_HEADERS or name.startswith(METADATA)
        }
        content_type = str(kept.pop("content-type", "application/octet-stream"))
        content = reader(response)
        target.put_object(bucket, item.name, content, item.size, content_type, kept, part_size=PART)  # type: ignore[arg-type] # it is only read
    finally:
        response.close()
        response.release_conn()
    return content.digest.hexdigest()


def _digest(client: Minio, bucket: str, item: s3.Version, reader: Callable[[Any], _Reader]) -> str:
    response = client.get_object(bucket, item.name, version_id=item.id)
    content = reader(response)
    try:
        while content.read(CHUNK):
            pass
    finally:
        response.close()
        response.release_conn()
    return content.digest.hexdigest()
