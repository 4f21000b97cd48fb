"""MinIO: the buckets, and the users of MLflow and the console, each with a policy for those buckets only."""

import json
from typing import Any

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, S3Error
from minio.minioadmin import MinioAdmin
from minio.versioningconfig import VersioningConfig

from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome, report
from mlstack.retries import retrying
from mlstack.s3 import client_for
from mlstack.settings import Keys

DEADLINE = 120  # seconds
_DENIED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")


def bootstrap(owner: Keys, user: Keys, console: Keys, *, quota: int = 0, deadline: float = DEADLINE) -> None:
    """Sets up MinIO. `quota` limits each bucket, in bytes; 0 is no limit.

    Raises MlstackError when MinIO does not answer within `deadline` seconds, or rejects the owner's keys.
    """
    client, admin = client_for(owner), _admin_for(owner)
    wait(client, owner, deadline)
    policy = f"mlflow-{owner.bucket}"
    for bucket in owner.buckets:
        report(f"bucket {bucket}", ensure_bucket(client, bucket))
        report(f"versioning of bucket {bucket}", ensure_versioning(client, bucket))
        report(f"quota of bucket {bucket}", ensure_quota(admin, bucket, quota))
    report(f"policy {policy}", ensure_policy(admin, policy, policy_for(*owner.buckets)))
    report("MinIO user of MLflow", ensure_user(admin, user))
    report(f"policy {policy} of that user", ensure_attached(admin, policy, user.access_key))
    report("former MinIO users of MLflow", ensure_no_other(admin, policy, user.access_key))
    policy = f"console-{owner.bucket}"
    report(f"policy {policy}", ensure_policy(admin, policy, console_policy_for(*owner.buckets)))
    report("user of MinIO's console", ensure_user(admin, console))
    report(f"policy {policy} of that user", ensure_attached(admin, policy, console.access_key))
    report("former users of MinIO's console", ensure_no_other(admin, policy, console.access_key))


# Unless denied, a user may change its own password and create service accounts, which survive a rotation.
_NO_ADMINISTRATION = {"Effect": "Deny", "Action": ["admin:*"]}


def console_policy_for(*buckets: str) -> dict[str, Any]:
    """Lists and reads the buckets with their versions."""
    names = [f"arn:aws:s3:::{bucket}" for bucket in buckets]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation", "s3:GetBucketVersioning", "s3:ListBucket", "s3:ListBucketVersions"],
                "Resource": names,
            },
            {"Effect": "Allow", "Action": ["s3:GetObject", "s3:GetObjectVersion"], "Resource": [f"{name}/*" for name in names]},
            _NO_ADMINISTRATION,
        ],
    }


def policy_for(*buckets: str) -> dict[str, Any]:
    """What MLflow needs in its buckets, without removing versions: what it deletes or overwrites remains recoverable."""
    names = [f"arn:aws:s3:::{bucket}" for bucket in buckets]
    objects = [f"{name}/*" for name in names]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads"],
                "Resource": names,
            },
            {
                "Effect": "Allow",
                "Action": [
                    "s3:AbortMultipartUpload",
                    "s3:DeleteObject",
                    "s3:GetObject",
                    "s3:ListMultipartUploadParts",
                    "s3:PutObject",
                ],
                "Resource": objects,
            },
            # Not granting it is not enough: in MinIO DeleteObject covers both, and only an explicit denial excludes it.
            {"Effect": "Deny", "Action": ["s3:DeleteObjectVersion"], "Resource": objects},
            # CVE-2026-41145: such a write is stored without checking its signature. No client of the stack sends one.
            {
                "Effect": "Deny",
                "Action": ["s3:PutObject"],
                "Resource": objects,
                "Condition": {"StringEquals": {"s3:x-amz-content-sha256": ["STREAMING-UNSIGNED-PAYLOAD-TRAILER"]}},
            },
            # Headers of an upload that MLflow never sends, but a client with a presigned URL might: a source to copy from, which
            # would make every object readable, tags and a storage class.
            *(
                {
                    "Effect": "Deny",
                    "Action": ["s3:PutObject"],
                    "Resource": objects,
                    "Condition": {"Null": {header: [False]}},
                }
                for header in ("s3:x-amz-copy-source", "s3:RequestObjectTagKeys", "s3:x-amz-storage-class")
            ),
            _NO_ADMINISTRATION,
        ],
    }


def ensure_bucket(client: Minio, bucket: str) -> Outcome:
    """The bucket exists and belongs to this MinIO."""
    if client.bucket_exists(bucket):
        return Outcome.ALREADY_THERE
    try:
        client.make_bucket(bucket)
    except S3Error as error:
        if error.code != "BucketAlreadyOwnedByYou":  # another bootstrap was faster
            raise
        return Outcome.ALREADY_THERE
    return Outcome.CREATED


def ensure_versioning(client: Minio, bucket: str) -> Outcome:
    """Overwritten and deleted objects are kept as versions."""
    if client.get_bucket_versioning(bucket).status == ENABLED:
        return Outcome.ALREADY_THERE
    client.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    return Outcome.CREATED


def ensure_quota(admin: MinioAdmin, bucket: str, size: int) -> Outcome:
    """The bucket holds at most this many bytes; 0 is no limit."""
    current = json.loads(admin.bucket_quota_get(bucket)).get("quota", 0)
    if current == size:
        return Outcome.ALREADY_THERE
    admin.bucket_quota_set(bucket, size)
    return Outcome.CHANGED if current else Outcome.CREATED


def ensure_policy(admin: MinioAdmin, name: str, document: dict[str, Any]) -> Outcome:
    """The policy is exactly this document."""
    current = json.loads(admin.policy_list()).get(name)
    if current is not None and normalised(current) == normalised(document):
        return Outcome.ALREADY_THERE
    admin.policy_add(name, policy=document)
    return Outcome.CREATED if current is None else Outcome.CHANGED


def ensure_user(admin: MinioAdmin, user: Keys) -> Outcome:
    """A user with these keys."""
    exists = user.access_key in json.loads(admin.user_list())
    if exists and _accepts(user):
        return Outcome.ALREADY_THERE
    admin.user_add(user.access_key, user.secret_key)
    return Outcome.CHANGED if exists else Outcome.CREATED


def ensure_attached(admin: MinioAdmin, policy: str, access_key: str) -> Outcome:
    """The policy is the user's only one."""
    attached = set(filter(None, json.loads(admin.user_info(access_key)).get("policyName", "").split(",")))
    if attached == {policy}:
        return Outcome.ALREADY_THERE
    if others := sorted(attached - {policy}):
        admin.detach_policy(others, user=access_key)
    if policy not in attached:
        admin.attach_policy([policy], user=access_key)
    return Outcome.CHANGED if attached else Outcome.CREATED


def ensure_no_other(admin: MinioAdmin, policy: str, access_key: str) -> Outcome:
    """No other user has the policy: keys that are no longer in .env are removed."""
    users: dict[str, dict[str, str]] = json.loads(admin.user_list())
    former = [name for name, user in users.items() if name != access_key and policy in user.get("policyName", "").split(",")]
    for name in former:
        admin.user_remove(name)
    return Outcome.CHANGED if former else Outcome.ALREADY_THERE


def _admin_for(keys: Keys) -> MinioAdmin:
    return MinioAdmin(endpoint=keys.endpoint, credentials=StaticProvider(keys.access_key, keys.secret_key), secure=False)


def _accepts(user: Keys) -> bool:
    """Whether MinIO knows these keys, whatever their policy allows."""
    try:
        client_for(user).bucket_exists(user.bucket)
    except S3Error as error:
        return error.code == "AccessDenied"
    return True


def normalised(document: dict[str, Any]) -> list[str]:
    """The statements sorted: MinIO returns lists in another order."""

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(item) for key, item in value.items()}
        if isinstance(value, list):
            return sorted((ordered(item) for item in value), key=json.dumps)
        return value

    return sorted(json.dumps(ordered(statement), sort_keys=True) for statement in document["Statement"])


def wait(client: Minio, owner: Keys, deadline: float) -> None:
    """Waits for the first answer. Raises MlstackError when there is none, or the owner's keys are rejected."""

    def is_transient(error: BaseException) -> bool:
        return not (isinstance(error, S3Error) and error.code in _DENIED)

    try:
        retrying(deadline, is_transient)(client.list_buckets)
    except S3Error as error:
        if error.code not in _DENIED:
            raise _no_answer(owner, deadline, error) from error
        raise MlstackError(
            f"MinIO rejects MINIO_ROOT_USER and MINIO_ROOT_PASSWORD ({error.code}).",
            "The running MinIO was started with other values; nothing was changed or lost.",
            "make up again starts MinIO with the values of .env",
        ) from error
    except (urllib3.exceptions.HTTPError, MinioAdminException) as error:
        raise _no_answer(owner, deadline, error) from error


def _no_answer(owner: Keys, deadline: float, error: Exception) -> MlstackError:
    return MlstackError(
        f"MinIO at {owner.endpoint} did not answer within {deadline:g} s: {error}",
        "MLflow keeps artifacts there.",
        "docker compose logs minio",
    )
