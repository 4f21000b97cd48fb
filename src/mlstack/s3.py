"""MinIO's S3 API: clients, and the layout of the bucket."""

from dataclasses import dataclass

import urllib3
from minio import Minio

from mlstack.settings import Keys

# The doctor's folder. MLflow's own folders are numbers.
DOCTOR = ".doctor/"


@dataclass(frozen=True)
class Folder:
    """The objects of a run, model or trace in the bucket. Sizes in bytes; `changed` in seconds since 1970.

    `old_size` is the size of replaced and deleted versions; `expired` counts those that are older than the age.
    """

    name: str
    objects: int = 0
    size: int = 0
    old_size: int = 0
    expired: int = 0
    expired_size: int = 0
    changed: float = 0


def client_for(keys: Keys) -> Minio:
    """An S3 client that fails fast, for callers that retry themselves."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=urllib3.Retry(total=0))
    return Minio(keys.endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, http_client=pool)
