"""Every version of every object, and how to be rid of them: for the storage's owner alone."""

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from minio import Minio
from minio.deleteobjects import DeleteObject

from mlstack.errors import MlstackError
from mlstack.s3 import DOCTOR, Folder

# …/<run>/, …/models/<model>/, …/traces/<trace>/
_FOLDER = re.compile(r"(?:[^/]+/)*?(?:[0-9a-f]{32}|m-[0-9a-f]{32}|tr-[0-9a-f]{32})/")
PAGE = 1000  # entries of a listing that come together
MANY = 10 * PAGE


@dataclass(frozen=True)
class Version:
    """One version of an object: `replaced` is when a newer one took its place, None if none did. Size in bytes."""

    name: str
    id: str
    size: int
    is_marker: bool
    made: datetime
    replaced: datetime | None


def histories(client: Minio, bucket: str, prefix: str = "") -> Iterator[list[Version]]:
    """The versions of each object, newest first.

    A page of the listing holds its versions first and its deletion marks after them. Names before the last page are complete.
    """
    pending: dict[str, list[Version]] = {}
    last: deque[str] = deque(maxlen=PAGE)
    for found in client.list_objects(bucket, prefix, recursive=True, include_version=True):
        name, made = found.object_name or "", found.last_modified or datetime.now(UTC)
        version = Version(name, found.version_id or "null", found.size or 0, found.is_delete_marker, made, None)
        versions = pending.setdefault(name, [])
        # The newest first, so that it stays so between versions of one millisecond.
        versions.insert(0 if found.is_latest == "true" else len(versions), version)
        last.append(name)
        if len(pending) > MANY:
            first = min(last)
            for complete in sorted(each for each in pending if each < first):
                yield _in_order(pending.pop(complete))
    for name in sorted(pending):
        yield _in_order(pending[name])


def expired(history: list[Version], now: datetime, age: timedelta) -> list[Version]:
    """The versions that were replaced or deleted longer ago than `age`; the mark of a deletion with the last of them."""
    old = [version for version in history if version.replaced and now - version.replaced > age]
    newest = history[0]
    if newest.is_marker and now - newest.made > age and len(old) == len(history) - 1:
        return [*old, newest]
    return old


def remove(client: Minio, bucket: str, versions: Iterable[tuple[str, str]]) -> int:
    """Removes versions, by name and id, for good and in this order. Returns how many.

    Raises MlstackError when the storage refuses one.
    """
    count = 0

    def each() -> Iterator[DeleteObject]:
        nonlocal count
        for name, version in versions:
            count += 1
            yield DeleteObject(name, version)

    for error in client.remove_objects(bucket, each()):
        raise MlstackError(
            f"{error.name} could not be removed: {error.message}",
            "Its room is not reclaimed.",
            "make gc again; make logs SERVICE=minio",
        )
    return count


def survey(client: Minio, bucket: str, age: timedelta, changed: Collection[str]) -> list[Folder]:
    """What each folder of the bucket holds, and what of it is older than `age`.

    `changed` names the objects that were written within it. The dates of their versions, which whoever wrote them may have
    chosen, make nothing of them old.
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
            changed=max(before.changed, now.timestamp() if is_young else newest.made.timestamp()),
        )
    return list(folders.values())


def folder_of(name: str) -> str:
    """The folder of the run, model or trace that an object belongs to; empty where it is none's."""
    if name.startswith(DOCTOR):
        return DOCTOR
    match = _FOLDER.match(name)
    return match[0] if match else ""


def aged(client: Minio, bucket: str, age: timedelta) -> list[Version]:
    """Every version that was replaced or deleted longer ago than `age`, as its date says. Marks of deletions are the last.

    Without its mark, an older version that is still there would be the object again.
    """
    now = datetime.now(UTC)
    found = [version for history in histories(client, bucket) for version in expired(history, now, age)]
    return sorted(found, key=lambda version: version.is_marker and version.replaced is None)


def purge(client: Minio, bucket: str, prefix: str) -> int:
    """Removes whatever is and was in the folder of a run, model or trace, or the doctor's. Returns how many versions.

    Raises MlstackError for any other prefix: an empty one would be the whole bucket.
    """
    if folder_of(prefix) != prefix or not prefix:
        raise MlstackError(f"{prefix!r} is no folder of a run, a model or a trace.", "Nothing was removed.", "report this")
    # The newest of each object last: interrupted, nothing deleted shows again.
    replaced = (version for history in histories(client, bucket, prefix) for version in history[1:])
    removed = remove(client, bucket, ((version.name, version.id) for version in replaced))
    return removed + remove(client, bucket, ((last.name, last.id) for last, *_ in histories(client, bucket, prefix)))


def _in_order(versions: list[Version]) -> list[Version]:
    newest_first = sorted(versions, key=lambda version: version.made, reverse=True)
    replaced = [None, *(version.made for version in newest_first)]
    return [
        Version(version.name, version.id, version.size, version.is_marker, version.made, since)
        for version, since in zip(newest_first, replaced, strict=False)
    ]
