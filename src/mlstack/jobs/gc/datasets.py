"""Versions of data sets that are deleted, or were never complete, and their removal. Needs the keys of MinIO's owner."""

import re

from minio import Minio

from mlstack.errors import MlstackError
from mlstack.jobs.gc import versions
from mlstack.s3 import DOCTOR, MANIFESTS, UPLOADS, manifest_of

# <name>/<version>/
_FOLDER = re.compile(r"[^/]+/[0-9a-f]{32}/")


def folder_of(key: str) -> str:
    """The folder of the version that an object belongs to, which may be its manifest; empty if it belongs to none."""
    if key.startswith(DOCTOR):
        return DOCTOR
    for place in (MANIFESTS, UPLOADS):
        if key.startswith(place):
            key = key.removeprefix(place).removesuffix(".json") + "/"
    match = _FOLDER.match(key)
    return match[0] if match else ""


def complete(client: Minio, bucket: str) -> list[str]:
    """The folders of all versions that users see."""
    return [folder_of(item.object_name or "") for item in client.list_objects(bucket, MANIFESTS, recursive=True)]


def purge(client: Minio, bucket: str, folder: str) -> int:
    """Removes all objects of a version that users do not see, or of the doctor. Returns how many.

    A version that is complete by now is kept. Raises MlstackError for any other folder.
    """
    if folder == DOCTOR:
        return versions.remove_all(client, bucket, DOCTOR)
    if not _FOLDER.fullmatch(folder):
        raise MlstackError(f"{folder!r} is no folder of a data set's version.", "Nothing was removed.", "report this")
    manifest = manifest_of(folder)
    if any(client.list_objects(bucket, manifest)):
        return 0
    return versions.remove_all(client, bucket, manifest, manifest_of(folder, UPLOADS), folder)
