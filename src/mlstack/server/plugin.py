"""What MLflow loads through its entry points while it is being loaded itself: nothing here imports MLflow yet."""

from typing import Any


def s3_repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """The repository of artifacts for `s3:` (artifacts.py)."""
    from mlstack.server.artifacts import ProxiedS3ArtifactRepository

    return ProxiedS3ArtifactRepository(artifact_uri, tracking_uri, registry_uri)
