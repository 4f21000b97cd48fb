"""What MLflow loads through its entry points during its own import: this module does not import MLflow."""

from typing import Any


def s3_repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """The repository of artifacts for `s3:` (artifacts.py)."""
    from mlstack.server.artifacts import ProxiedS3ArtifactRepository

    return ProxiedS3ArtifactRepository(artifact_uri, tracking_uri, registry_uri)
