"""What the project needs of the store of its artifacts and data sets, promised by MinIO (docs/storage.md).

`tests/parts/test_versitygw_contract.py` runs the same tests with VersityGW.
"""

import hashlib
import io
import json
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import urllib3
from docker.types import DriverConfig, Mount
from minio import Minio
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.minioadmin import MinioAdmin
from minio.versioningconfig import SUSPENDED, VersioningConfig
from testcontainers.core.network import Network

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.host.backup.bucket import as_of
from mlstack.jobs.bootstrap import minio as for_minio
from mlstack.jobs.bootstrap import versitygw as for_versitygw
from mlstack.s3 import client_for
from mlstack.server.signature import CHECKSUM, Signer, signer_for_uploads
from mlstack.settings import MINIO, VERSITYGW, Keys
from tests.integration.conftest import keys
from tests.support.clone import Clone
from tests.support.service import Service, wait_until

MIB = 1024 * 1024
SOON = timedelta(minutes=1)


@dataclass(frozen=True)
class Store:
    """A store after its bootstrap, and clients with the keys of its owner and of MLflow."""

    name: str
    service: Service
    owner_keys: Keys
    keys: Keys
    console_keys: Keys

    @property
    def owner(self) -> Minio:
        return client_for(self.owner_keys)

    @property
    def user(self) -> Minio:
        return client_for(self.keys)

    @property
    def bucket(self) -> str:
        return self.keys.bucket

    def bootstrap(self, quota: int = 0) -> None:
        module = for_versitygw if self.name == VERSITYGW else for_minio
        module.bootstrap(self.owner_keys, self.keys, self.console_keys, quota=quota)

    def put(self, key: str, content: bytes = b"content", bucket: str = "") -> str:
        written = self.user.put_object(bucket or self.bucket, key, io.BytesIO(content), len(content))
        return str(written.version_id)

    def get(self, key: str, version: str | None = None, client: Minio | None = None) -> bytes:
        response = (client or self.user).get_object(self.bucket, key, version_id=version)
        try:
            return response.data
        finally:
            response.close()
            response.release_conn()

    def uploads(self, lifetime: timedelta = SOON) -> Signer:
        return signer_for_uploads(self.name, self.keys.endpoint, self.keys, lifetime)


@pytest.fixture(scope="module")
def name() -> str:
    """The store that makes the promises."""
    return MINIO


@pytest.fixture(scope="module")
def image(built: Clone) -> Clone:
    """A clone with the store's image."""
    return built


@pytest.fixture(scope="module")
def store(name: str, image: Clone) -> Iterator[Store]:
    with (
        Network(docker_network_kw={"labels": {"mlstack": image.name}}) as network,
        Service(image, "minio", network, 9000) as service,
    ):
        yield bootstrapped(name, image, service)


def bootstrapped(name: str, clone: Clone, service: Service) -> Store:
    store = Store(
        name,
        service,
        keys(clone, service, "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"),
        keys(clone, service, "MLFLOW_S3_ACCESS_KEY_ID", "MLFLOW_S3_SECRET_ACCESS_KEY"),
        keys(clone, service, "MINIO_CONSOLE_USER", "MINIO_CONSOLE_PASSWORD"),
    )
    store.bootstrap()
    return store


def request(method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
    return urllib3.request(method, url, retries=False, **options)


@pytest.mark.promise("An object is read back byte for byte, from no byte to several parts")
@pytest.mark.parametrize("size", [0, 1, 17 * MIB], ids=["empty", "one byte", "several parts"])
def test_object_is_read_back_byte_for_byte(store: Store, size: int) -> None:
    content = secrets.token_bytes(size)
    store.put(f"round-trip/{size}", content)
    assert hashlib.sha256(store.get(f"round-trip/{size}")).digest() == hashlib.sha256(content).digest()


@pytest.mark.promise("Content type and metadata are kept, and copied by a backup's owner")
def test_content_type_and_metadata_are_kept(store: Store) -> None:
    store.user.put_object(store.bucket, "meta", io.BytesIO(b"a,b"), 3, "text/csv", {"origin": "a file"})
    store.owner.copy_object(store.bucket, "meta-copy", CopySource(store.bucket, "meta"))
    for key in ("meta", "meta-copy"):
        stat = store.user.stat_object(store.bucket, key)
        assert stat.content_type == "text/csv"
        assert stat.metadata and stat.metadata["x-amz-meta-origin"] == "a file"


@pytest.mark.promise("What is overwritten or deleted stays readable as a version, and a deletion can be undone")
def test_versions_and_delete_markers_are_kept(store: Store) -> None:
    first, second = store.put("versions/kept", b"first"), store.put("versions/kept", b"second")
    store.user.remove_object(store.bucket, "versions/kept")
    with pytest.raises(S3Error, match="NoSuchKey"):
        store.get("versions/kept")
    assert [item.object_name for item in store.user.list_objects(store.bucket, "versions/kept")] == []
    assert [store.get("versions/kept", version, store.owner) for version in (first, second)] == [b"first", b"second"]
    listed = list(s3.versions(store.owner, store.bucket, "versions/kept"))
    assert [(item.is_latest, item.is_marker) for item in sorted(listed, key=lambda item: item.time)] == [
        (False, False),
        (False, False),
        (True, True),
    ]
    marker = next(item.id for item in listed if item.is_marker)
    store.owner.remove_object(store.bucket, "versions/kept", version_id=marker)
    assert store.get("versions/kept") == b"second"


@pytest.mark.promise("Versions have times in milliseconds, so that a backup reads the buckets as of one point in time")
def test_bucket_is_read_as_of_one_point_in_time(store: Store) -> None:
    def held(moment: datetime) -> dict[str, bytes]:
        versions = [version for version in as_of(store.owner, store.bucket, moment) if version.key.startswith("as-of/")]
        return {version.key[6:]: store.get(version.key, version.version, store.owner) for version in versions}

    for key in ("kept", "overwritten", "deleted"):
        store.put(f"as-of/{key}", b"before")
    before = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > before + timedelta(milliseconds=50), interval=0.01)
    for key in ("overwritten", "later"):
        store.put(f"as-of/{key}", b"after")
    store.user.remove_object(store.bucket, "as-of/deleted")
    after = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > after + timedelta(milliseconds=50), interval=0.01)
    store.put("as-of/deleted", b"again")
    assert held(before) == {"kept": b"before", "overwritten": b"before", "deleted": b"before"}
    assert held(after) == {"kept": b"before", "overwritten": b"after", "later": b"after"}


@pytest.mark.promise("A write is read at once, by every client, while others write the same key")
def test_acknowledged_write_is_read_while_others_write(store: Store) -> None:
    writers, rounds = 6, 8

    def write_and_read(writer: int) -> list[str]:
        written = []
        for number in range(rounds):
            own = f"{writer} {number}".encode().ljust(64 * 1024, b".")
            written.append(store.put("concurrent/shared", own))
            store.put(f"concurrent/{writer}", own)
            assert store.get(f"concurrent/{writer}") == own
            shared = store.get("concurrent/shared")
            assert len(shared) == len(own) and shared.rstrip(b".").replace(b" ", b"").isdigit()
        return written

    with ThreadPoolExecutor(writers) as pool:
        acknowledged = {version for versions in pool.map(write_and_read, range(writers)) for version in versions}
    listed = {item.id: item for item in s3.versions(store.owner, store.bucket, "concurrent/shared")}
    assert listed.keys() == acknowledged
    (latest,) = [item for item in listed.values() if item.is_latest]
    assert store.get("concurrent/shared") == store.get("concurrent/shared", latest.id, store.owner)


@pytest.mark.promise("A listing comes in pages, in the order of the keys, from any key on, below any folder")
def test_listing_comes_in_pages_in_order(store: Store) -> None:
    names = [f"listing/{number:04}" for number in range(1010)] + [f"listing/folder/{letter}" for letter in "aü~ +"]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.put, names))
    in_order = sorted(names, key=lambda name: name.encode())

    def listed(**options: Any) -> list[str]:
        return [str(item.object_name) for item in store.user.list_objects(store.bucket, "listing/", **options)]

    assert listed(recursive=True) == in_order
    assert listed(recursive=True, start_after=in_order[700]) == in_order[701:]
    assert sorted(listed()) == sorted([*names[:1010], "listing/folder/"])
    assert {item.name for item in s3.versions(store.owner, store.bucket, "listing/")} == set(names)


@pytest.mark.promise("An object comes in parts that a broken upload keeps, so it may be larger than 5 GiB")
def test_upload_in_parts_is_resumed_and_whole(store: Store) -> None:
    parts = {1: secrets.token_bytes(5 * MIB), 2: secrets.token_bytes(5 * MIB), 3: b"end"}

    def call(method: str, body: bytes | str = b"", **parameters: str) -> urllib3.BaseHTTPResponse:
        url = Signer(method, store.keys.endpoint, store.keys, SOON, parameters=parameters).url("parts")
        answer = request(method, url, body=body)
        assert answer.status == 200, answer.data
        return answer

    begun = re.search(r"<UploadId>(.+?)</UploadId>", call("POST", uploads="").data.decode())
    assert begun
    tags = {number: call("PUT", parts[number], uploadId=begun[1], partNumber=str(number)).headers["etag"] for number in (3, 1)}
    listed = re.findall(r"<PartNumber>(\d)</PartNumber>", call("GET", uploadId=begun[1]).data.decode())
    assert listed == ["1", "3"]
    tags[2] = call("PUT", parts[2], uploadId=begun[1], partNumber="2").headers["etag"]
    ended = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{tags[number]}</ETag></Part>" for number in parts)
    call("POST", f"<CompleteMultipartUpload>{ended}</CompleteMultipartUpload>", uploadId=begun[1])
    assert store.get("parts") == b"".join(parts.values())


@pytest.mark.promise(
    "MLflow's keys remove no version, and open no other bucket",
    versitygw="kept; by policies of the buckets, because its users have none",
)
@pytest.mark.refusal
def test_mlflows_keys_are_denied_what_the_policy_does_not_grant(store: Store, subtests: pytest.Subtests) -> None:
    for name, forbidden in DENIED.items():
        with subtests.test(name):
            prepare(store)
            with pytest.raises(S3Error, match="AccessDenied"):
                forbidden(store)
    with subtests.test("other buckets are not listed"):
        assert {bucket.name for bucket in store.user.list_buckets()} <= set(store.keys.buckets)


def test_each_denial_is_the_policys(store: Store, subtests: pytest.Subtests) -> None:
    """With a policy that allows everything, nothing of it is denied: the store checks it, and the test above can fail."""
    prepare(store)
    widen(store)
    try:
        for name, forbidden in DENIED.items():
            with subtests.test(name):
                prepare(store)
                forbidden(store)
    finally:
        store.owner.set_bucket_versioning(store.bucket, VersioningConfig("Enabled"))
        narrow(store)
        store.bootstrap()


def prepare(store: Store) -> None:
    """A bucket that is not MLflow's, and two versions of an object."""
    if not store.owner.bucket_exists("private"):
        store.owner.make_bucket("private")
        store.owner.put_object("private", "object", io.BytesIO(b"x"), 1)
    store.put("denied", b"first")
    store.put("denied", b"second")


def oldest(store: Store) -> str:
    return min(s3.versions(store.owner, store.bucket, "denied"), key=lambda version: version.time).id


def remove_in_a_batch(store: Store) -> None:
    for error in store.user.remove_objects(store.bucket, [DeleteObject("denied", oldest(store))]):
        raise S3Error(None, error.code, error.message, None, None, None)  # type: ignore[arg-type]


DENIED: dict[str, Callable[[Store], object]] = {
    "remove a version": lambda store: store.user.remove_object(store.bucket, "denied", version_id=oldest(store)),
    "remove versions in a batch": remove_in_a_batch,
    "list another bucket": lambda store: list(store.user.list_objects("private")),
    "read another": lambda store: store.user.get_object("private", "object").close(),
    "write another": lambda store: store.put("mine", bucket="private"),
    "copy from another": lambda store: store.user.copy_object(store.bucket, "copied", CopySource("private", "object")),
    "stop versioning": lambda store: store.user.set_bucket_versioning(store.bucket, VersioningConfig(SUSPENDED)),
}


def admin_of(store: Store) -> MinioAdmin:
    return for_minio._admin_for(store.owner_keys)


def widen(store: Store) -> None:
    """Allows MLflow's user everything in both buckets."""
    names = [f"arn:aws:s3:::{bucket}{rest}" for bucket in (store.bucket, "private") for rest in ("", "/*")]
    allow: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:*"], "Resource": names}
    if store.name == MINIO:
        document = {"Version": "2012-10-17", "Statement": [allow]}
        admin_of(store).policy_add(f"mlflow-{store.bucket}", policy=document)
        return
    for bucket in (store.bucket, "private"):
        own = {**allow, "Principal": {"AWS": [store.keys.access_key]}, "Resource": [n for n in names if f":{bucket}" in n]}
        store.owner.set_bucket_policy(bucket, json.dumps({"Version": "2012-10-17", "Statement": [own]}))


def narrow(store: Store) -> None:
    if store.name == VERSITYGW:
        store.owner.delete_bucket_policy("private")


@pytest.mark.promise("A presigned URL is for one key, one method and, of a version, the current one")
@pytest.mark.refusal
def test_presigned_url_is_for_one_key_and_one_method(store: Store) -> None:
    first = store.put("signed/other", b"first")
    store.put("signed/other", b"second")
    write = store.uploads().url("signed/own")
    read = Signer("GET", store.keys.endpoint, store.keys, SOON).url("signed/other")
    assert request("PUT", write, body=b"written").status == 200
    assert store.get("signed/own") == b"written"
    assert request("GET", read).data == b"second"
    denied = {
        "another key": request("PUT", write.replace("signed/own", "signed/other"), body=b"x"),
        "another bucket": request("PUT", write.replace(f"/{store.bucket}/", f"/{store.keys.datasets}/"), body=b"x"),
        "reading": request("GET", write),
        "deleting": request("DELETE", write),
        "an older version": request("GET", f"{read}&versionId={first}"),
        "another upload": request("PUT", f"{write}&uploadId=x&partNumber=1", body=b"x"),
    }
    assert {name: answer.status for name, answer in denied.items()} == dict.fromkeys(denied, 403)
    assert store.get("signed/other") == b"second"


@pytest.mark.promise("A presigned URL expires")
@pytest.mark.refusal
def test_presigned_url_expires(store: Store) -> None:
    url = store.uploads(timedelta(seconds=1)).url("signed/late")
    wait_until(lambda: request("PUT", url, body=b"x").status == 403)
    assert request("PUT", store.uploads().url("signed/late"), body=b"x").status == 200


@pytest.mark.promise(
    "A client with a presigned URL copies no other object, and sets no tags, date, class or encoding",
    versitygw="kept, but for the encoding: no signature can forbid it; clients of the stack read the stored bytes",
)
@pytest.mark.refusal
def test_presigned_url_takes_no_header_of_s3(store: Store) -> None:
    store.put("headers/source", b"another's")
    headers = {
        "x-amz-copy-source": f"/{store.bucket}/headers/source",
        "x-amz-tagging": "a=b",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "x-minio-source-mtime": "2000-01-01T00:00:00Z",
        "content-encoding": "gzip",
    }
    url = store.uploads().url("headers/target")
    answers = {name: request("PUT", url, body=b"", headers={name: value}) for name, value in headers.items()}
    accepted = {name for name, answer in answers.items() if answer.status == 200}
    assert accepted == ({"x-minio-source-mtime", "content-encoding"} if store.name == VERSITYGW else set())
    if accepted:  # that date is ignored
        assert store.get("headers/target") == b""
        now = datetime.now(UTC)
        assert all(now - item.time < SOON for item in s3.versions(store.owner, store.bucket, "headers/target"))


@pytest.mark.promise(
    "MLflow's own keys copy nothing",
    versitygw="within the two buckets they can, which they may read and write anyway; presigned URLs cannot",
)
@pytest.mark.refusal
def test_mlflows_keys_copy_nothing(store: Store) -> None:
    store.put("copy/source")
    if store.name == VERSITYGW:
        store.user.copy_object(store.bucket, "copy/target", CopySource(store.bucket, "copy/source"))
        assert store.get("copy/target") == store.get("copy/source")
        return
    with pytest.raises(S3Error, match="AccessDenied"):
        store.user.copy_object(store.bucket, "copy/target", CopySource(store.bucket, "copy/source"))


@pytest.mark.promise("A presigned URL for a data set accepts its very bytes")
@pytest.mark.refusal
def test_presigned_url_accepts_only_the_announced_content(store: Store) -> None:
    right, wrong = b"right", b"wrong"
    digest = hashlib.sha256(right).hexdigest()
    url = store.uploads().url_for_content("content", digest, {})
    assert send(url, wrong).status in (400, 403)
    with pytest.raises(S3Error, match="NoSuchKey"):
        store.get("content")
    assert send(url, right).status == 200
    assert store.get("content") == right


def send(url: str, body: bytes) -> urllib3.BaseHTTPResponse:
    """As the client does."""
    from mlstack.client.transfers import _checksum_in

    headers = _checksum_in(url)
    assert headers.keys() <= {CHECKSUM}
    return request("PUT", url, body=body, headers=headers)


@pytest.mark.promise(
    "An acknowledged write survives a killed server", versitygw="kept, and written to the disk by our program: it calls no fsync"
)
def test_acknowledged_write_survives_a_killed_server(store: Store) -> None:
    version = store.put("killed", b"still there")
    store.service.wrapped.kill()
    store.service.wrapped.start()
    wait_until(store.service.is_healthy)
    assert store.get("killed") == b"still there"
    assert store.get("killed", version, store.owner) == b"still there"


@pytest.mark.promise(
    "A bucket has a quota",
    versitygw="it has none: `make up` stops while `MINIO_BUCKET_QUOTA` is set",
)
def test_bucket_has_a_quota(store: Store) -> None:
    if store.name == VERSITYGW:
        with pytest.raises(MlstackError, match="no quota"):
            store.bootstrap(quota=5 * MIB)
        return
    store.bootstrap(quota=5 * MIB)
    assert json.loads(admin_of(store).bucket_quota_get(store.bucket))["quota"] == 5 * MIB
    with pytest.raises(S3Error, match="XMinioAdminBucketQuotaExceeded"):
        store.put("too-large", bytes(6 * MIB))
    store.bootstrap()
    store.put("too-large", bytes(6 * MIB))


@pytest.mark.promise(
    "A full disk rejects a write, keeps what is stored, and shows in the healthcheck; reads continue",
    minio="kept, but for the healthcheck: it stays healthy",
)
def test_full_disk_rejects_writes_and_keeps_what_is_stored(name: str, image: Clone) -> None:
    with Network(docker_network_kw={"labels": {"mlstack": image.name}}) as network:
        service = Service(image, "minio", network, 9000)
        disk = DriverConfig("local", {"type": "tmpfs", "device": "tmpfs", "o": "size=256m,uid=60710,gid=60710"})
        service._kwargs["mounts"] = [Mount("/data", None, driver_config=disk)]
        with service:
            store = bootstrapped(name, image, service)
            store.put("before", b"kept")
            service.run("bash", "-c", "cat /dev/zero >/data/filler || true")
            assert service.is_healthy() == (name == MINIO)
            with pytest.raises(S3Error):
                store.put("during", bytes(MIB))
            assert store.get("before") == b"kept"
            service.run("rm", "/data/filler")
            wait_until(service.is_healthy)
            with pytest.raises(S3Error, match="NoSuchKey"):
                store.get("during")
            wait_until(lambda: accepts(store))


def accepts(store: Store) -> bool:
    """Whether a write succeeds. MinIO notices only after a moment that its disk has room again."""
    try:
        store.put("after", b"kept")
    except S3Error as error:
        assert error.code == "XMinioStorageFull"
        return False
    return store.get("after") == b"kept"
