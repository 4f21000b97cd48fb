"""MinIO's S3 API: clients, and the layout of the bucket."""

from dataclasses import dataclass

import urllib3
from minio import Minio

from mlstack.settings import Keys

# Where the doctor writes. MLflow's own folders are numbers.
DOCTOR = ".doctor/"


@dataclass(frozen=True)
class Folder:
    """What a run, model or trace holds in the bucket. Sizes in bytes; `changed` in seconds since 1970.

    `old_size` is what replaced and deleted versions occupy, `expired` of them long enough ago.
    """

    name: str
    objects: int = 0
    size: int = 0
    old_size: int = 0
    expired: int = 0
    expired_size: int = 0
    changed: float = 0


def client_for(keys: Keys) -> Minio:
    """An S3 client that fails soon, for callers that retry themselves."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=urllib3.Retry(total=0))
    return Minio(keys.endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, http_client=pool)
