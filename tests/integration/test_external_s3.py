"""The bootstrap at an S3 store that is not the stack's own: over TLS, with a login for two buckets; and presigned URLs."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
import urllib3
from minio.error import S3Error

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import Outcome, external_s3, minio
from mlstack.server.signature import Signer
from mlstack.settings import Keys
from tests.support.certificates import Authority
from tests.support.clone import Clone
from tests.support.external_s3 import ExternalS3
from tests.support.external_s3 import external_s3 as started

AUTHORITY = Authority("a provider's own authority")


@pytest.fixture(scope="module")
def store(built: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExternalS3]:
    folder = tmp_path_factory.mktemp("authority")
    with started(built.image("minio"), folder, AUTHORITY, "our-artifacts", "our-datasets") as store:
        yield store


@pytest.fixture(scope="module")
def keys(store: ExternalS3) -> Keys:
    external_s3.bootstrap(store.keys)
    return store.keys


def test_bootstrap_uses_no_administration_and_changes_nothing_the_second_time(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Outcome] = []
    monkeypatch.setattr(external_s3, "report", lambda subject, outcome: outcomes.append(outcome))
    external_s3.bootstrap(keys)
    assert outcomes == [Outcome.ALREADY_THERE] * 4
    for bucket in keys.buckets:
        assert s3.client_for(keys).get_bucket_versioning(bucket).status == "Enabled"


def test_missing_bucket_that_the_login_may_not_create_is_a_task_for_an_administrator(keys: Keys) -> None:
    with pytest.raises(MlstackError) as denied:
        external_s3.bootstrap(replace(keys, bucket="of-others"))
    assert "let an administrator of the store create the bucket of-others" in denied.value.fix


@pytest.mark.refusal
def test_store_is_rejected_whose_certificate_name_or_keys_are_wrong(
    keys: Keys, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    (tmp_path / "other.pem").write_text(Authority("another authority").certificate)
    port = keys.endpoint.partition(":")[2]
    for wrong, expected in (
        (replace(keys, authorities=str(tmp_path / "other.pem")), "untrusted authority"),
        (replace(keys, endpoint=f"localhost:{port}"), "a certificate for another name"),
        (replace(keys, endpoint="no-such-host.invalid"), "is no host that can be found"),
        (replace(keys, secret_key="a wrong secret key"), "rejects the keys"),
        (replace(keys, access_key="a-wrong-key"), "rejects the keys"),
    ):
        with subtests.test(expected=expected), pytest.raises(MlstackError, match=expected) as refused:
            s3.wait_for_external(wrong, 1)
        assert wrong.secret_key not in str(refused.value)


@pytest.mark.refusal
def test_presigned_url_of_an_external_store_is_https_and_for_its_region(keys: Keys) -> None:
    s3.client_for(keys).put_object(keys.bucket, "1/kept.txt", BytesIO(b"kept"), 4)
    url = Signer("GET", keys.public.partition("://")[2], keys, timedelta(minutes=1)).url("1/kept.txt")
    assert url.startswith(f"{keys.public}/{keys.bucket}/") and url.startswith("https://")
    with urllib3.PoolManager(ca_certs=keys.authorities) as clients:
        assert clients.request("GET", url).data == b"kept"
        elsewhere = Signer("GET", keys.endpoint, replace(keys, region="us-east-1"), timedelta(minutes=1)).url("1/kept.txt")
        assert clients.request("GET", elsewhere).status == 400
    with urllib3.PoolManager() as others, pytest.raises(urllib3.exceptions.HTTPError, match="CERTIFICATE_VERIFY_FAILED"):
        others.request("GET", url, retries=False)


@pytest.mark.refusal
def test_login_to_an_external_store_needs_no_administration(keys: Keys) -> None:
    """The stack asks for no more than the two buckets: what else the store has stays closed to it."""
    with pytest.raises(S3Error, match="Access Denied"):
        s3.client_for(keys).make_bucket("another", keys.region)
    assert minio.ensure_versioning(s3.client_for(keys), keys.bucket) is Outcome.ALREADY_THERE
