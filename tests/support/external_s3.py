"""An S3 store that is not the stack's own: a second MinIO with TLS, and a login for two buckets that has no other right."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from minio.credentials.providers import StaticProvider
from minio.minioadmin import MinioAdmin

from mlstack import s3
from mlstack.host.compose import docker
from mlstack.host.preflight import free_ports
from mlstack.settings import Keys
from tests.support.certificates import Authority
from tests.support.clone import NAME
from tests.support.external_postgres import address


@dataclass(frozen=True)
class ExternalS3:
    """`owner` is the provider's own login; `keys` may do with objects of the two buckets whatever S3 has, and nothing else."""

    owner: Keys
    keys: Keys

    @property
    def settings(self) -> dict[str, str]:
        return {
            "EXTERNAL_S3": self.keys.url,
            "EXTERNAL_S3_REGION": self.keys.region,
            "EXTERNAL_S3_ACCESS_KEY_ID": self.keys.access_key,
            "EXTERNAL_S3_SECRET_ACCESS_KEY": self.keys.secret_key,
            "EXTERNAL_S3_CA": self.keys.authorities,
        }


@contextmanager
def external_s3(image: str, folder: Path, authority: Authority, *buckets: str) -> Iterator[ExternalS3]:
    """A store in the host's network, in a region of its own; `folder` gets the file with the authority's certificate."""
    host, (port, console) = address(), free_ports(2)
    (folder / "authority.pem").write_text(authority.certificate)
    certificate = authority.issue(host)
    owner = Keys(
        secrets.token_hex(8), secrets.token_hex(16), *buckets, endpoint=f"{host}:{port}", scheme="https", region="eu-test-1",
        authorities=str(folder / "authority.pem"), public=f"https://{host}:{port}",
    )  # fmt: skip
    name = f"{NAME}-{os.getpid()}-s3-{secrets.token_hex(3)}"
    environment = {
        "MINIO_ROOT_USER": owner.access_key,
        "MINIO_ROOT_PASSWORD": owner.secret_key,
        "MINIO_SITE_REGION": owner.region,
        "CERTIFICATE": certificate.certificate,
        "PRIVATE": certificate.key,
    }
    flags = [flag for variable, value in environment.items() for flag in ("--env", f"{variable}={value}")]
    start = (
        'mkdir /tmp/certs && printf %s "$CERTIFICATE" >/tmp/certs/public.crt && printf %s "$PRIVATE" >/tmp/certs/private.key'
        f" && exec minio server /data --address :{port} --console-address 127.0.0.1:{console} --certs-dir /tmp/certs"
    )
    docker("run", "--detach", "--network", "host", "--name", name, *flags, "--entrypoint", "bash", image, "-c", start)
    try:
        s3.wait_for_external(owner, 60)
        yield ExternalS3(owner, _limited(owner))
    finally:
        docker("rm", "--force", "--volumes", name)


def _limited(owner: Keys) -> Keys:
    """A new login with S3's rights in the two buckets, which the provider makes."""
    keys = replace(owner, access_key=secrets.token_hex(8), secret_key=secrets.token_hex(16))
    client = s3.client_for(owner)
    for bucket in owner.buckets:
        client.make_bucket(bucket, owner.region)
    admin = MinioAdmin(
        endpoint=owner.endpoint,
        credentials=StaticProvider(owner.access_key, owner.secret_key),
        region=owner.region,
        http_client=s3.client_for(owner)._http,
    )
    names = [f"arn:aws:s3:::{bucket}" for bucket in owner.buckets]
    rights = {"Effect": "Allow", "Action": ["s3:*"], "Resource": [*names, *(f"{name}/*" for name in names)]}
    administration = {"Effect": "Deny", "Action": ["admin:*"]}
    policy = {"Version": "2012-10-17", "Statement": [rights, administration]}
    admin.user_add(keys.access_key, keys.secret_key)
    admin.policy_add("two-buckets", policy=policy)
    admin.attach_policy(["two-buckets"], user=keys.access_key)
    return keys
