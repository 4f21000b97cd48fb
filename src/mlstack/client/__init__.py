"""The way into the stack's MLflow from a notebook or a script on this machine."""

from collections.abc import Mapping

import mlflow  # noqa: F401 # first: MLflow loads modules of this package while it is being loaded itself

from mlstack import settings

# As in the stack's own notebooks: a call outlives any restart.
PATIENCE: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "9",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def connect() -> str:
    """Points this process' MLflow client at the stack and returns its URI.

    Inside the stack everything is set already and stays. On the host the values come from the project's `.env`.
    Raises SettingsError when they are missing there (make env writes them).
    """
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    found = settings.read(*names, values=settings.of_project())
    settings.publish({name: value for name, value in PATIENCE.items() if not settings.of_shell(name)})
    settings.publish(found)
    return found["MLFLOW_TRACKING_URI"]
