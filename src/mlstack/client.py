"""The way into the stack's MLflow from a notebook or a script on this machine."""

from mlstack import settings


def connect() -> str:
    """Points this process' MLflow client at the stack and returns its URI.

    Inside the stack everything is set already and stays. On the host the values come from the project's `.env`.
    Raises SettingsError when they are missing there (make env writes them).
    """
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    found = settings.read(*names, values=settings.of_project())
    settings.publish(found)
    return found["MLFLOW_TRACKING_URI"]
