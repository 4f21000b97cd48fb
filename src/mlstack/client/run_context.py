"""What MLflow notes of a run that a notebook makes: the notebook's name, not ipykernel's launcher.

MLflow loads this module while it is being imported, through its entry point, so that what is set here holds for every program.
"""

from mlstack.client import upstream
from mlstack.client.upstream import MLFLOW_SOURCE_NAME, MLFLOW_SOURCE_TYPE, RunContextProvider
from mlstack.logger import notebook

upstream.log_models_as_pickles()
upstream.tell_who_waits()


class NotebookContext(RunContextProvider):
    """The tags that say where a run's code is."""

    def in_context(self) -> bool:
        return notebook() is not None

    def tags(self) -> dict[str, str]:
        return {MLFLOW_SOURCE_NAME: notebook() or "", MLFLOW_SOURCE_TYPE: "NOTEBOOK"}
