"""The S3 API of MinIO, VersityGW or an external store: clients, versions, and the layout of the buckets."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import urllib3
from minio import Minio
from minio.error import S3Error

from mlstack.errors import MlstackError
from mlstack.retries import retrying
from mlstack.settings import Keys

# The doctor's folder in each bucket. MLflow's own folders are numbers.
DOCTOR = ".doctor/"
# In the bucket for data sets, a version's files are in <name>/<version>/. A complete version has its manifest in the first of
# these folders; an upload in progress has it in the second.
MANIFESTS, UPLOADS = ".manifests/", ".uploads/"
PAGE = 1000  # entries of one page of a listing
MANY = 10 * PAGE


# Errors of an external store that waiting does not change: what is wrong, and how to fix it.
_KEYS = ("rejects the keys", "correct EXTERNAL_S3_ACCESS_KEY_ID and EXTERNAL_S3_SECRET_ACCESS_KEY in .env")
_REJECTED = ("InvalidAccessKeyId", "SignatureDoesNotMatch")
_FINAL = {
    "NameResolutionError": ("is no host that can be found", "correct EXTERNAL_S3 in .env, or the DNS of the host"),
    "Hostname mismatch": ("has a certificate for another name", "set EXTERNAL_S3 in .env to the name in the certificate"),
    "IP address mismatch": ("has a certificate for another name", "set EXTERNAL_S3 in .env to the name in the certificate"),
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate of an untrusted authority",
        "set EXTERNAL_S3_CA in .env to the file with the authority's certificate",
    ),
    "WRONG_VERSION_NUMBER": (
        "does not offer TLS",
        "switch TLS on at the store; http:// in EXTERNAL_S3 sends everything unencrypted",
    ),
    **dict.fromkeys(_REJECTED, _KEYS),
}

# VersityGW's ids of versions are ULIDs: the time in milliseconds in ten digits, and sixteen random ones. MinIO's are UUIDs.
_ULID_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(f"([0-7][{_ULID_DIGITS}]{{9}})[{_ULID_DIGITS}]{{16}}")


@dataclass(frozen=True)
class Version:
    """A version of an object, or a delete marker, as the bucket lists it. Size in bytes."""

    name: str
    id: str
    etag: str
    size: int
    time: datetime
    is_latest: bool
    is_marker: bool


@dataclass(frozen=True)
class Folder:
    """The objects of a run, model, trace or version of a data set. Sizes in bytes; `changed` in seconds since 1970.

    `old_size` is the size of replaced and deleted versions; `expired` counts those that are older than the age.
    """

    name: str
    objects: int = 0
    size: int = 0
    old_size: int = 0
    expired: int = 0
    expired_size: int = 0
    changed: float = 0


def trace_folder(experiment: str, trace: str) -> str:
    """The folder of a trace: its archived spans, and what is attached to it in an experiment with the default location."""
    return f"{experiment}/traces/{trace}/"


def manifest_of(folder: str, place: str = MANIFESTS) -> str:
    """The key of the manifest of the version in this folder of the bucket for data sets."""
    return f"{place}{folder.rstrip('/')}.json"


def client_for(keys: Keys) -> Minio:
    """An S3 client that fails fast, for callers that retry themselves."""
    return client_with(keys, timeout=urllib3.Timeout(connect=5, read=30), retries=urllib3.Retry(total=0))


def wait_for_external(keys: Keys, deadline: float) -> None:
    """Waits until an external store answers this login.

    Raises MlstackError with the cause: no such host, an untrusted certificate, wrong keys, no answer.
    """

    def is_transient(error: BaseException) -> bool:
        return _is_not_ready(error) or (isinstance(error, urllib3.exceptions.HTTPError) and _explanation(error) is None)

    try:
        retrying(deadline, is_transient)(client_for(keys).get_bucket_versioning, keys.bucket)  # HEAD would not say why
    except (S3Error, urllib3.exceptions.HTTPError) as error:
        if isinstance(error, S3Error) and error.code not in _REJECTED and not _is_not_ready(error):
            return  # it answers this login; what the login may do is found out by using it
        wrong, fix = _explanation(error) or (
            f"does not answer within {deadline:g} s",
            "correct EXTERNAL_S3 in .env, or start the store",
        )
        raise MlstackError(
            f"external S3: {keys.url} {wrong} ({' '.join(str(error).split())}).", "MLflow keeps artifacts there.", fix
        ) from error


def _is_not_ready(error: BaseException) -> bool:
    return isinstance(error, S3Error) and error.response.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _explanation(error: BaseException) -> tuple[str, str] | None:
    return next((explanation for text, explanation in _FINAL.items() if text in f"{error}"), None)


def client_with(keys: Keys, **connections: Any) -> Minio:
    """An S3 client whose connections have these settings of urllib3."""
    pool = urllib3.PoolManager(ca_certs=keys.authorities or None, **connections)
    return Minio(
        keys.endpoint,
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        secure=keys.scheme == "https",
        region=keys.region if keys.is_external else None,
        http_client=pool,
    )


def versions(client: Minio, bucket: str, prefix: str = "") -> Iterator[Version]:
    """All versions and delete markers of all objects. Of one object the newest comes first, but a page has its markers last."""
    for item in client.list_objects(bucket, prefix, recursive=True, include_version=True):
        id_, listed = item.version_id or "null", item.last_modified or datetime.now(UTC)
        yield Version(
            item.object_name or "",
            id_,
            (item.etag or "").strip('"'),
            item.size or 0,
            _time_in(id_) or listed,
            item.is_latest == "true",
            item.is_delete_marker,
        )


def histories(client: Minio, bucket: str, prefix: str = "") -> Iterator[list[Version]]:
    """The versions and delete markers of each object, newest first.

    A page of the listing has its versions first and its delete markers after them. Names before the last page are complete.
    """
    pending: dict[str, list[Version]] = {}
    last: deque[str] = deque(maxlen=PAGE)
    for version in versions(client, bucket, prefix):
        pending.setdefault(version.name, []).append(version)
        last.append(version.name)
        if len(pending) > MANY:
            first = min(last)
            for complete in sorted(key for key in pending if key < first):
                yield _in_order(pending.pop(complete))
    for name in sorted(pending):
        yield _in_order(pending[name])


def _in_order(history: list[Version]) -> list[Version]:
    """The newest first. Versions of the same millisecond stay as they are listed."""
    return sorted(history, key=lambda version: (version.is_latest, version.time), reverse=True)


def _time_in(version: str) -> datetime | None:
    """The time in a ULID: VersityGW lists versions with whole seconds, which do not say what came before a backup."""
    if not (ulid := _ULID.fullmatch(version)):
        return None
    milliseconds = 0
    for digit in ulid[1]:
        milliseconds = milliseconds * 32 + _ULID_DIGITS.index(digit)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
