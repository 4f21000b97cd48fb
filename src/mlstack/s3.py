"""MinIO's S3 API: clients, and the layout of the buckets."""

from dataclasses import dataclass

import urllib3
from minio import Minio

from mlstack.settings import Keys

# The doctor's folder in each bucket. MLflow's own folders are numbers.
DOCTOR = ".doctor/"
# In the bucket for data sets, a version's files are in <name>/<version>/. A complete version has its manifest in the first of
# these folders; an upload in progress has it in the second.
MANIFESTS, UPLOADS = ".manifests/", ".uploads/"


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


def manifest_of(folder: str, place: str = MANIFESTS) -> str:
    """The key of the manifest of the version in this folder of the bucket for data sets."""
    return f"{place}{folder.rstrip('/')}.json"


def client_for(keys: Keys) -> Minio:
    """An S3 client that fails fast, for callers that retry themselves."""
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=30), retries=urllib3.Retry(total=0))
    return Minio(keys.endpoint, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, http_client=pool)
