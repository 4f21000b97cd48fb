"""Connects a notebook or a script on the host to the stack's MLflow."""

from collections.abc import Mapping

import mlflow  # noqa: F401 # first: MLflow imports modules of this package during its own import

from mlstack import settings

# As in the stack's own notebooks: a call survives any restart.
PATIENCE: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "9",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def connect() -> str:
    """Points this process' MLflow client at the stack and returns its URI.

    In the stack's containers everything is set already and is kept. On the host the values come from the project's `.env`.
    Raises SettingsError when they are missing there (make env writes them).
    """
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    values = settings.read(*names, values=settings.of_project())
    settings.publish({name: value for name, value in PATIENCE.items() if not settings.of_shell(name)})
    settings.publish(values)
    return values["MLFLOW_TRACKING_URI"]
