"""The error of MLflow's own calls where mlstack does their work."""

from mlflow.exceptions import MlflowException

from mlstack.errors import MlstackError


class ClientError(MlstackError, MlflowException):
    """An MlstackError that `except MlflowException` catches, as programs that are written for MLflow do."""
