"""Where experiments, model versions and traces keep artifacts: in this server's bucket, under their own permissions."""

import re
from typing import Any

from mlflow.exceptions import MlflowException

from mlstack import s3, settings
from mlstack.server.upstream import append_to_uri_path, replace_archives, replace_locations, tracking_store

# A folder of the bucket. Numbers are the folders of experiments with the default location: permissions depend on them.
_LOCATION = re.compile(r"mlflow-artifacts:/(?!\d+(?:/|$)|workspaces(?:/|$))[\w-][\w. -]*(?:/[\w-][\w. -]*)*/?")


def confine() -> None:
    """Replaces how MLflow's handlers decide where artifacts are, so that no request can name the location of another's."""
    replace_locations(_validate_location, _validate_stored, _location_of_trace)
    replace_archives(_archive_of_trace, _archive_of_id)


def _validate_location(location: str) -> None:
    """Checks a new experiment. Raises MlflowException if its artifacts would be lost or have another's permissions."""
    if not _LOCATION.fullmatch(location):
        raise MlflowException.invalid_parameter_value(
            f"No experiment can keep artifacts in {location!r}: this server stores them in its own bucket, and an experiment"
            " does not store them in the folder of another one. Leave artifact_location out, or write mlflow-artifacts:/<folder>"
            " with a folder that is no number."
        )


def _validate_stored(uri: str) -> None:
    """Checks an older experiment or model version. Raises MlflowException for a location outside the server's bucket."""
    bucket = settings.server_keys().bucket
    if not uri.startswith(f"s3://{bucket}/"):
        raise MlflowException.invalid_parameter_value(
            f"{uri!r} is outside of this server's bucket {bucket}: it neither reads nor stores artifacts there."
            " Use an experiment that was created without artifact_location."
        )


def _location_of_trace(trace: Any) -> str:
    """Not from the trace's tag, which an account that may edit the trace can change."""
    experiment = tracking_store().get_experiment(trace.experiment_id)
    location: str = append_to_uri_path(experiment.artifact_location, "traces", trace.trace_id, "artifacts")
    return location


def _archive_of_trace(trace: Any) -> str:
    """Not from the trace's tag either: MLflow rejects it from a client, but not in a new trace."""
    return f"s3://{settings.server_keys().bucket}/{s3.trace_folder(str(trace.experiment_id), trace.trace_id)}artifacts"


def _archive_of_id(trace: str) -> str:
    return _archive_of_trace(tracking_store().get_trace_info(trace))
