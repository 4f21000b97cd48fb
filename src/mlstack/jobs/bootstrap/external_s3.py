"""An external S3 store: two buckets that keep versions. Users and policies are its administrators' (docs/adr/0037)."""

from collections.abc import Iterator
from contextlib import contextmanager

from minio.error import S3Error

from mlstack import s3
from mlstack.errors import MlstackError
from mlstack.jobs.bootstrap import log, minio, report
from mlstack.settings import Keys

DEADLINE = 120  # seconds


def bootstrap(keys: Keys, *, quota: int = 0, deadline: float = DEADLINE) -> None:
    """Creates what is missing, if the login may. Raises MlstackError with what an administrator has to do otherwise."""
    s3.wait_for_external(keys, deadline)
    client = s3.client_for(keys)
    for bucket in keys.buckets:
        with _right_explained(f"create the bucket {bucket}, or let this login use it"):
            report(f"bucket {bucket}", minio.ensure_bucket(client, bucket))
        with _right_explained(f"switch on versioning of the bucket {bucket}"):
            report(f"versioning of bucket {bucket}", minio.ensure_versioning(client, bucket))
    if quota:
        log.warning("MINIO_BUCKET_QUOTA limits MinIO alone: set a limit at the external store")


@contextmanager
def _right_explained(task: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        raise MlstackError(
            f"external S3: {error.code}: {error.message}",
            "MLflow keeps artifacts there, and needs their old versions for backups.",
            f"let an administrator of the store {task}; then make up",
        ) from error
