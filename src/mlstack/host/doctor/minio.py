"""MinIO, by using it: an object in each bucket, written and read with MLflow's own key, and what that key must not do."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from io import BytesIO

import urllib3
from minio import Minio
from minio.error import S3Error

from mlstack.errors import MlstackError
from mlstack.host import http
from mlstack.host.doctor.check import check
from mlstack.host.doctor.context import Subject, skew
from mlstack.host.doctor.stack import service
from mlstack.s3 import DOCTOR, client_for

REACH = "storage"


@check(REACH, "an object with MLflow's key", service("minio"))
def round_trip(subject: Subject) -> str:
    """Written, read, deleted. The versions that this leaves, which MLflow's key cannot remove, are removed at the end."""
    content, name = os.urandom(10_000), f"{DOCTOR}{uuid.uuid4().hex}"
    for bucket in subject.stack.tracking_keys.buckets:
        with _client(subject, bucket) as client:
            subject.has_written = True
            client.put_object(bucket, name, BytesIO(content), len(content))
            try:
                answer = client.get_object(bucket, name)
                read = answer.read()
                answer.release_conn()
            finally:
                client.remove_object(bucket, name)
            remaining = [item.object_name for item in client.list_objects(bucket, name)]
        if read != content or remaining:
            raise MlstackError(
                f"MinIO gave back other bytes, or kept a deleted object, in the bucket {bucket}.",
                "Artifacts and data sets are not safe.",
                "make logs SERVICE=minio",
            )
    return "wrote, read and deleted, in each bucket"


@check(REACH, "deleted objects can be restored", round_trip)
def versions(subject: Subject) -> str:
    for bucket in subject.stack.tracking_keys.buckets:
        with _client(subject, bucket) as client:
            _require_versions(client, bucket)
            if not subject.stack.keys.is_external:
                _require_lasting_versions(client, bucket)
    return "versions are kept"


def _require_versions(client: Minio, bucket: str) -> None:
    name = f"{DOCTOR}{uuid.uuid4().hex}"
    version = client.put_object(bucket, name, BytesIO(b"x"), 1).version_id
    client.remove_object(bucket, name)
    if not version:
        raise MlstackError(
            f"the bucket {bucket} keeps no versions.",
            "What is deleted or overwritten there is gone.",
            "make up switches them on",
        )


def _require_lasting_versions(client: Minio, bucket: str) -> None:
    name = f"{DOCTOR}{uuid.uuid4().hex}"
    version = client.put_object(bucket, name, BytesIO(b"x"), 1).version_id
    try:
        client.remove_object(bucket, name, version_id=version)
    except S3Error as error:
        if error.code != "AccessDenied":
            raise
        client.remove_object(bucket, name)
        return
    raise MlstackError(
        f"MLflow's key could remove a version permanently, in the bucket {bucket}.",
        "A mistake or a thief could delete artifacts and data sets beyond recovery.",
        "make up sets its policy",
    )


@check(REACH, "MLflow's key opens its buckets alone", round_trip)
def scope(subject: Subject) -> str | None:
    keys = subject.stack.tracking_keys
    if keys.is_external:
        return "what the login opens is the external store's to say"
    with _client(subject, keys.bucket) as client:
        others = [other.name for other in client.list_buckets() if other.name not in keys.buckets]
    if others:
        raise MlstackError(
            f"MLflow's key also opens {', '.join(others)}.", "A key should open what it is for.", "make up sets its policy"
        )
    return None


@check(REACH, "clock of MinIO", service("minio"))
def clock(subject: Subject) -> str:
    keys = subject.stack.keys

    def read() -> float:
        answer = http.call(
            "MinIO",
            "GET",
            f"{keys.url}/minio/health/live",  # whatever an external store answers there is dated
            why="MLflow cannot keep artifacts.",
            timeout=5,
            authorities=keys.authorities,
        )
        return parsedate_to_datetime(answer.headers["Date"]).replace(tzinfo=UTC).timestamp() + 0.5  # it has whole seconds

    return skew(subject, "MinIO", read, "restart Docker (Docker Desktop), or set the clock: timedatectl")


@contextmanager
def _client(subject: Subject, bucket: str) -> Iterator[Minio]:
    """A client with MLflow's key; its errors are explained for this bucket."""
    keys = subject.stack.tracking_keys
    try:
        yield client_for(keys)
    except S3Error as error:
        causes = {
            "InvalidAccessKeyId": ("MinIO does not know MLFLOW_S3_ACCESS_KEY_ID.", "make up makes the user with the key of .env"),
            "SignatureDoesNotMatch": ("MinIO rejects MLFLOW_S3_SECRET_ACCESS_KEY.", "make up gives the user the key of .env"),
            "AccessDenied": (
                f"MinIO forbids MLflow's key what MLflow needs ({error.message})",
                "make up sets the policy of MLflow's key",
            ),
            "NoSuchBucket": (f"the bucket {bucket} is not there.", "make up makes it; make restore brings its objects back"),
            "XMinioStorageFull": ("MinIO's disk is full.", "free some room: make gc, docker system df"),
        }
        wrong, fix = causes.get(error.code or "", (f"MinIO answers {error.code}: {error.message}", "make logs SERVICE=minio"))
        raise MlstackError(wrong, "MLflow cannot keep artifacts.", fix) from error
    except urllib3.exceptions.HTTPError as error:
        raise MlstackError(
            f"MinIO does not answer at {keys.endpoint}: {type(error).__name__}.",
            "MLflow cannot keep artifacts.",
            "make logs SERVICE=minio",
        ) from error
