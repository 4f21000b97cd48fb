"""All versions of all objects, and their removal. Needs the keys of MinIO's owner."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from minio import Minio
from minio.deleteobjects import DeleteObject

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.s3 import DOCTOR, Folder

# …/<run>/, …/models/<model>/, …/traces/<trace>/
_FOLDER = re.compile(r"(?:[^/]+/)*?(?:[0-9a-f]{32}|m-[0-9a-f]{32}|tr-[0-9a-f]{32})/")


@dataclass(frozen=True)
class Version:
    """One version of an object: `replaced` is the date of the next version, None for the newest. Size in bytes."""

    name: str
    id: str
    size: int
    is_marker: bool
    created: datetime
    replaced: datetime | None


def histories(client: Minio, bucket: str, prefix: str = "") -> Iterator[list[Version]]:
    """The versions of each object, newest first."""
    for history in s3.histories(client, bucket, prefix):
        replaced = [None, *(item.time for item in history)]
        yield [
            Version(item.name, item.id, item.size, item.is_marker, item.time, since)
            for item, since in zip(history, replaced, strict=False)
        ]


def expired(history: list[Version], now: datetime, age: timedelta) -> list[Version]:
    """The versions that were replaced or deleted longer ago than `age`; a delete marker goes with the last of them."""
    old = [version for version in history if version.replaced and now - version.replaced > age]
    newest = history[0]
    if newest.is_marker and now - newest.created > age and len(old) == len(history) - 1:
        return [*old, newest]
    return old


def remove(client: Minio, bucket: str, versions: Iterable[tuple[str, str]]) -> int:
    """Removes versions permanently, by name and id, in this order. Returns how many.

    Raises MlstackError when MinIO rejects one.
    """
    count = 0

    def objects() -> Iterator[DeleteObject]:
        nonlocal count
        for name, version in versions:
            count += 1
            yield DeleteObject(name, version)

    for error in client.remove_objects(bucket, objects()):
        raise MlstackError(
            f"{error.name} could not be removed: {error.message}",
            "Its disk space is not freed.",
            "make gc again; make logs SERVICE=minio",
        )
    return count


def folder_of(name: str) -> str:
    """The folder of the run, model or trace that an object belongs to; empty if it belongs to none."""
    if name.startswith(DOCTOR):
        return DOCTOR
    match = _FOLDER.match(name)
    return match[0] if match else ""


def survey(
    client: Minio, bucket: str, age: timedelta, changed: Collection[str], folder_of: Callable[[str], str] = folder_of
) -> list[Folder]:
    """The content of each folder of the bucket, and how much of it was replaced longer ago than `age`.

    `changed` names the objects that were written within it. Their versions are never old: a client that writes an object may
    choose its date.
    """
    now = datetime.now(UTC)
    folders: dict[str, Folder] = {}
    for history in histories(client, bucket):
        newest, name = history[0], folder_of(history[0].name)
        is_young = newest.name in changed
        old = [] if is_young else expired(history, now, age)
        before = folders.get(name, Folder(name))
        folders[name] = Folder(
            name,
            objects=before.objects + (not newest.is_marker),
            size=before.size + (0 if newest.is_marker else newest.size),
            old_size=before.old_size + sum(version.size for version in history if version.replaced),
            expired=before.expired + len(old),
            expired_size=before.expired_size + sum(version.size for version in old),
            changed=max(before.changed, now.timestamp() if is_young else newest.created.timestamp()),
        )
    return list(folders.values())


def aged(client: Minio, bucket: str, age: timedelta) -> list[Version]:
    """Every version that was replaced or deleted longer ago than `age`, by its date. Delete markers come last.

    Without its marker, a remaining older version would be the object again.
    """
    now = datetime.now(UTC)
    old = [version for history in histories(client, bucket) for version in expired(history, now, age)]
    return sorted(old, key=lambda version: version.is_marker and version.replaced is None)


def purge(client: Minio, bucket: str, prefix: str) -> int:
    """Removes all versions in the folder of a run, model or trace, or the doctor's. Returns how many.

    Raises MlstackError for any other prefix: an empty one would be the whole bucket.
    """
    if folder_of(prefix) != prefix or not prefix:
        raise MlstackError(f"{prefix!r} is no folder of a run, a model or a trace.", "Nothing was removed.", "report this")
    return remove_all(client, bucket, prefix)


def remove_all(client: Minio, bucket: str, *prefixes: str) -> int:
    """Removes all versions of all objects with these prefixes. Returns how many."""

    def listed() -> Iterator[list[Version]]:
        return (history for prefix in prefixes for history in histories(client, bucket, prefix))

    # The newest of each object last: if interrupted, no deleted object reappears.
    removed = remove(client, bucket, ((version.name, version.id) for history in listed() for version in history[1:]))
    return removed + remove(client, bucket, ((last.name, last.id) for last, *_ in listed()))
