"""docker/minio: the server's release, and MLflow's keys, which open one bucket and delete nothing permanently."""

import gzip
import hashlib
import io
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.versioningconfig import SUSPENDED, VersioningConfig

from mlstack.host.backup.bucket import Copy, as_of, differences
from mlstack.s3 import client_for
from mlstack.settings import Keys
from tests.support.service import Service, wait_until

pytestmark = pytest.mark.usefixtures("bootstrapped")
MIB = 1024 * 1024


@pytest.fixture
def user(user_keys: Keys) -> Minio:
    return client_for(user_keys)


@pytest.fixture
def root(owner_keys: Keys) -> Minio:
    return client_for(owner_keys)


def put(client: Minio, bucket: str, name: str, content: bytes) -> str | None:
    return client.put_object(bucket, name, io.BytesIO(content), len(content)).version_id


def get(client: Minio, bucket: str, name: str, version: str | None = None) -> bytes:
    response = client.get_object(bucket, name, version_id=version)
    try:
        return response.data
    finally:
        response.close()
        response.release_conn()


def test_minio_is_a_release_with_the_fixes(minio: Service) -> None:
    version = minio.run("minio", "--version")
    assert "RELEASE.2026-02-12T20-18-48Z (commit-id=7aac2a2c5b7c)" in version
    assert "DEVELOPMENT" not in version.upper()


def test_minio_runs_as_its_own_uid(minio: Service) -> None:
    assert minio.run("id", "-u") == "60710\n"


@pytest.mark.parametrize("size", [0, 1, 17 * MIB], ids=["empty", "one byte", "several parts"])
def test_object_is_read_back_byte_for_byte(user: Minio, user_keys: Keys, size: int) -> None:
    content = secrets.token_bytes(size)
    put(user, user_keys.bucket, f"round-trip/{size}", content)
    assert hashlib.sha256(get(user, user_keys.bucket, f"round-trip/{size}")).digest() == hashlib.sha256(content).digest()


@pytest.mark.refusal
def test_deleted_object_is_recoverable_and_its_versions_are_kept(
    user: Minio, user_keys: Keys, root: Minio, subtests: pytest.Subtests
) -> None:
    for bucket in user_keys.buckets:
        with subtests.test(bucket=bucket):
            first = put(user, bucket, "kept", b"first")
            put(user, bucket, "kept", b"second")
            user.remove_object(bucket, "kept")
            with pytest.raises(S3Error, match="NoSuchKey"):
                get(user, bucket, "kept")
            # MLflow's user cannot remove the version itself, one by one or in a batch.
            with pytest.raises(S3Error, match="AccessDenied"):
                user.remove_object(bucket, "kept", version_id=first)
            assert [error.code for error in user.remove_objects(bucket, [DeleteObject("kept", first)])] == ["AccessDenied"]
            assert get(root, bucket, "kept", first) == b"first"


@pytest.mark.refusal
@pytest.mark.parametrize(
    "forbidden",
    [
        lambda user: user.make_bucket("another"),
        lambda user: user.remove_bucket("mlflow"),
        lambda user: list(user.list_objects("private")),
        lambda user: user.get_object("private", "object"),
        lambda user: put(user, "private", "mine", b"x"),
        lambda user: user.set_bucket_versioning("mlflow", VersioningConfig(SUSPENDED)),
        lambda user: user.delete_bucket_policy("mlflow"),
        lambda user: user.remove_bucket("datasets"),
        lambda user: user.set_bucket_versioning("datasets", VersioningConfig(SUSPENDED)),
    ],
    ids=[
        "make a bucket",
        "remove its bucket",
        "list another",
        "read another",
        "write another",
        "stop versioning",
        "change the policy",
        "remove the bucket of data sets",
        "stop its versioning",
    ],
)
def test_mlflows_keys_have_no_access_outside_their_buckets(user: Minio, root: Minio, forbidden: object) -> None:
    if not root.bucket_exists("private"):
        root.make_bucket("private")
        put(root, "private", "object", b"private")
    with pytest.raises(S3Error, match="AccessDenied"):
        forbidden(user)  # type: ignore[operator]


@pytest.mark.refusal
def test_mlflows_keys_list_only_their_buckets(user: Minio, user_keys: Keys, root: Minio) -> None:
    if not root.bucket_exists("unseen"):
        root.make_bucket("unseen")
    assert {bucket.name for bucket in user.list_buckets()} == set(user_keys.buckets)


def test_objects_survive_a_restart(minio: Service, user_keys: Keys, user: Minio) -> None:
    put(user, user_keys.bucket, "before-restart", b"still here")
    minio.restart()
    assert get(user, user_keys.bucket, "before-restart") == b"still here"


def test_backup_lists_the_bucket_as_of_one_point_in_time(user: Minio, user_keys: Keys) -> None:
    def held(moment: datetime) -> dict[str, bytes]:
        versions = [version for version in as_of(user, user_keys.bucket, moment) if version.key.startswith("as-of/")]
        return {version.key[6:]: get(user, user_keys.bucket, version.key, version.version) for version in versions}

    for key in ("kept", "overwritten", "deleted"):
        put(user, user_keys.bucket, f"as-of/{key}", b"before")
    before = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > before + timedelta(milliseconds=50))
    for key in ("overwritten", "later"):
        put(user, user_keys.bucket, f"as-of/{key}", b"after")
    user.remove_object(user_keys.bucket, "as-of/deleted")
    assert held(before) == {"kept": b"before", "overwritten": b"before", "deleted": b"before"}
    assert held(datetime.now(UTC)) == {"kept": b"before", "overwritten": b"after", "later": b"after"}


def test_backup_copies_a_compressed_object_as_it_is_stored(user: Minio, user_keys: Keys, tmp_path: Path) -> None:
    """MLflow's own server stores table.csv.gz with this header, at which a client decompresses what it reads."""
    content = gzip.compress(b"1,2\n" * 1000)
    user.put_object(
        user_keys.bucket, "compressed/table.csv.gz", io.BytesIO(content), len(content), "text/csv", {"Content-Encoding": "gzip"}
    )
    (tmp_path / "objects").mkdir()
    versions = [version for version in as_of(user, user_keys.bucket, datetime.now(UTC)) if version.key.startswith("compressed/")]
    (copied,) = Copy(user, user_keys.bucket, tmp_path, lambda _: None).run(versions, {}, lambda _: None)
    assert (tmp_path / copied.path).read_bytes() == content
    assert copied.headers["content-encoding"] == "gzip"
    others = [text for text in differences(user, user_keys.bucket, [copied], lambda _: None) if "not in the backup" not in text]
    assert others == []
