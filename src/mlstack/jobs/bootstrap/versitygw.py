"""VersityGW in the place of MinIO: the same buckets, users and rights.

It has no policies of users: each bucket has one policy, which names the users. A user that no policy names opens nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.error import S3Error
from minio.signer import sign_v4_s3

from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome, report
from mlstack.jobs.bootstrap.minio import DEADLINE, ensure_bucket, ensure_versioning, normalised, wait
from mlstack.s3 import client_for
from mlstack.settings import Keys


def bootstrap(owner: Keys, user: Keys, console: Keys, *, quota: int = 0, deadline: float = DEADLINE) -> None:
    """Sets up VersityGW as `minio.bootstrap` does MinIO. Raises MlstackError as that does, and for a quota."""
    if quota:
        raise MlstackError(
            "MINIO_BUCKET_QUOTA is set, and VersityGW has no quota.",
            "Nothing would limit what the buckets hold.",
            "MINIO_BUCKET_QUOTA= in .env, then make up",
        )
    client, admin = client_for(owner), Admin(owner)
    wait(client, owner, deadline)
    for account, whose in ((user, "MLflow"), (console, "reading")):
        report(f"VersityGW user of {whose}", ensure_user(admin, account))
    report("former users of VersityGW", ensure_no_other(admin, user.access_key, console.access_key))
    for bucket in owner.buckets:
        report(f"bucket {bucket}", ensure_bucket(client, bucket))
        report(f"versioning of bucket {bucket}", ensure_versioning(client, bucket))
        policy = policy_for(bucket, user.access_key, console.access_key)
        report(f"policy of bucket {bucket}", ensure_policy(client, bucket, policy))


def policy_for(bucket: str, user: str, console: str) -> dict[str, Any]:
    """The rights of `minio.policy_for` and `minio.console_policy_for`.

    Copies within the buckets cannot be denied: VersityGW has no condition for the header. It rejects presigned URLs with any
    header of S3 that was not signed, so only the holder of the keys can copy, who may read and write anyway.
    """
    name, objects = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"

    def allow(who: str, resource: str, *actions: str) -> dict[str, Any]:
        rights = [f"s3:{action}" for action in actions]
        return {"Effect": "Allow", "Principal": {"AWS": [who]}, "Action": rights, "Resource": [resource]}

    return {
        "Version": "2012-10-17",
        "Statement": [
            allow(user, name, "GetBucketLocation", "ListBucket", "ListBucketMultipartUploads"),
            allow(user, objects, "AbortMultipartUpload", "DeleteObject", "GetObject", "ListMultipartUploadParts", "PutObject"),
            allow(console, name, "GetBucketLocation", "GetBucketVersioning", "ListBucket", "ListBucketVersions"),
            allow(console, objects, "GetObject", "GetObjectVersion"),
        ],
    }


class Admin:
    """VersityGW's interface for users: XML over signed requests with a method of its own."""

    def __init__(self, owner: Keys) -> None:
        self._owner = owner
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=False)

    def users(self) -> dict[str, str]:
        """The secret of each user."""
        accounts = ET.fromstring(self._call("list-users")).findall("Accounts")  # noqa: S314 (from our own server)
        return {account.findtext("Access", ""): account.findtext("Secret", "") for account in accounts}

    def add(self, user: Keys) -> None:
        """Creates a user that owns nothing and administers nothing."""
        fields = {"Access": user.access_key, "Secret": user.secret_key, "Role": "user"}
        self._call("create-user", body=_xml("Account", fields))

    def remove(self, access_key: str) -> None:
        """Removes a user."""
        self._call("delete-user", f"?access={quote(access_key)}")

    def set_secret(self, user: Keys) -> None:
        """Gives a user another secret."""
        self._call("update-user", f"?access={quote(user.access_key)}", _xml("MutableProps", {"Secret": user.secret_key}))

    def _call(self, action: str, query: str = "", body: bytes = b"") -> bytes:
        url, now, digest = f"http://{self._owner.endpoint}/{action}{query}", datetime.now(UTC), hashlib.sha256(body).hexdigest()
        headers = sign_v4_s3(
            method="PATCH",
            url=urlsplit(url),
            region="us-east-1",
            headers={"Host": self._owner.endpoint, "x-amz-content-sha256": digest, "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}"},
            credentials=Credentials(self._owner.access_key, self._owner.secret_key),
            content_sha256=digest,
            date=now,
        )
        answer = self._http.request("PATCH", url, body=body, headers={name: str(value) for name, value in headers.items()})
        if not 200 <= answer.status < 300:  # noqa: PLR2004
            raise MlstackError(
                f"VersityGW answers {action} with {answer.status}: {answer.data.decode(errors='replace')[:200]}",
                "MLflow's keys may not open the buckets.",
                "make up again; docker compose logs minio",
            )
        return answer.data


def ensure_user(admin: Admin, user: Keys) -> Outcome:
    """A user with these keys."""
    known = admin.users()
    if user.access_key not in known:
        admin.add(user)
        return Outcome.CREATED
    if known[user.access_key] == user.secret_key:
        return Outcome.ALREADY_THERE
    admin.set_secret(user)
    return Outcome.CHANGED


def ensure_no_other(admin: Admin, *access_keys: str) -> Outcome:
    """No other user: keys that are no longer in .env are removed."""
    former = admin.users().keys() - set(access_keys)
    for name in former:
        admin.remove(name)
    return Outcome.CHANGED if former else Outcome.ALREADY_THERE


def ensure_policy(client: Minio, bucket: str, document: dict[str, Any]) -> Outcome:
    """The bucket's policy is exactly this document."""
    try:
        current = json.loads(client.get_bucket_policy(bucket))
    except S3Error as error:
        if error.code != "NoSuchBucketPolicy":
            raise
        current = None
    if current is not None and normalised(current) == normalised(document):
        return Outcome.ALREADY_THERE
    client.set_bucket_policy(bucket, json.dumps(document))
    return Outcome.CREATED if current is None else Outcome.CHANGED


def _xml(root: str, fields: Mapping[str, str]) -> bytes:
    element = ET.Element(root)
    for name, value in fields.items():
        ET.SubElement(element, name).text = value
    return ET.tostring(element)
