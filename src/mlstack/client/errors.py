"""The error that mlstack raises from MLflow's own calls."""

from mlflow.exceptions import MlflowException

from mlstack.errors import MlstackError


class ClientError(MlstackError, MlflowException):
    """An MlstackError that programs written for MLflow catch with `except MlflowException`."""
