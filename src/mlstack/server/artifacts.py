"""MLflow's access to the bucket, in its server: artifacts of MLflow's own clients pass through the server.

MLflow offers clients presigned URLs of any S3 store. Its own would point to http://minio:9000, which neither a browser nor
a client on the host reaches: each download would hang in retries. MLflow has no setting for that, but offers URLs only for a
repository class that can presign them. This one cannot (docs/adr/0005); presigned_urls.py creates URLs that clients reach.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException

from mlstack.server.upstream import BAD_REQUEST, TEMPORARILY_UNAVAILABLE, ArtifactRepository, S3ArtifactRepository


class ProxiedS3ArtifactRepository(ArtifactRepository):
    """MLflow's own S3 repository without its presigned URLs. Registered for `s3:` by plugin.py."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._s3 = S3ArtifactRepository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        with _quota_explained():
            self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        with _quota_explained():
            self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        files: list[FileInfo] = self._s3.list_artifacts(path)
        return files

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)

    def download_archived_trace_data(self) -> Any:
        """The archived spans of a trace. Raises MlflowException if the store does not answer: MLflow shows none then."""
        try:
            self._s3.list_artifacts()
        except (BotoCoreError, ClientError) as error:
            raise MlflowException(f"The store of artifacts does not answer: {error}", TEMPORARILY_UNAVAILABLE) from error
        return super().download_archived_trace_data()

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._s3.delete_artifacts(artifact_path)


@contextmanager
def _quota_explained() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if "XMinioAdminBucketQuotaExceeded" not in str(error):  # boto3 raises different classes, depending on the kind of upload
            raise
        raise MlflowException(
            "The bucket is full: it holds as much as MINIO_BUCKET_QUOTA allows. Fix: delete runs or models and run make gc, or"
            " raise MINIO_BUCKET_QUOTA in .env and run make up.",
            BAD_REQUEST,
        ) from error
