"""Where MLflow's server keeps artifacts: in its own bucket, and nowhere else.

Clients of MLflow's own making read and write artifacts through the server. MLflow offers them presigned URLs to any S3 store,
but its own would point to http://minio:9000, which neither a browser nor a client on this machine reaches: each download would
hang in retries. MLflow has no switch for that, but offers URLs only for a repository that says it makes them. This one does not
say so (docs/adr/0005); presigned_urls.py makes URLs that lead somewhere.
"""

import re
from typing import Any

from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.utils.uri import append_to_uri_path

from mlstack import settings

# A folder of the bucket. Numbers are the folders of experiments without a location of their own: permissions go by them.
_LOCATION = re.compile(r"mlflow-artifacts:/(?!\d+(?:/|$)|workspaces(?:/|$))[\w-][\w. -]*(?:/[\w-][\w. -]*)*/?")


def confine() -> None:
    """Changes how MLflow's handlers decide where artifacts are: a request does not say so for what is not its own."""
    upstream: Any = handlers
    upstream._validate_experiment_artifact_location = _validate_location
    upstream.validate_artifact_uri_host = _validate_stored
    upstream.get_artifact_uri_for_trace = _location_of_trace


def _validate_location(location: str) -> None:
    """Of a new experiment. Raises MlflowException when artifacts there would be lost, or be within another one's permissions."""
    if not _LOCATION.fullmatch(location):
        raise MlflowException.invalid_parameter_value(
            f"No experiment can keep artifacts in {location!r}: this server stores them in its own bucket, and an experiment"
            " does not store them in the folder of another one. Leave artifact_location out, or write mlflow-artifacts:/<folder>"
            " with a folder that is no number."
        )


def _validate_stored(uri: str) -> None:
    """Of an experiment or a model version made earlier. Raises MlflowException for another place than the server's bucket."""
    bucket = settings.server_keys().bucket
    if not uri.startswith(f"s3://{bucket}/"):
        raise MlflowException.invalid_parameter_value(
            f"{uri!r} is outside of this server's bucket {bucket}: it neither reads nor stores artifacts there."
            " Use an experiment that was made without artifact_location."
        )


def _location_of_trace(trace: Any) -> str:
    """Not what a tag of the trace says, which whoever may edit the trace may change."""
    experiment = handlers._get_tracking_store().get_experiment(trace.experiment_id)
    location: str = append_to_uri_path(experiment.artifact_location, "traces", trace.trace_id, "artifacts")
    return location


class ProxiedS3ArtifactRepository(ArtifactRepository):
    """MLflow's own S3 repository without its presigned links. Registered for `s3:` through MLflow's entry point."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._s3 = S3ArtifactRepository(artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        found: list[FileInfo] = self._s3.list_artifacts(path)
        return found

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._s3.delete_artifacts(artifact_path)
