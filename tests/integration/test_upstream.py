"""Private names of MLflow and uvicorn in the images: an upgrade names those whose source has to be read again."""

from tests.support import upstream
from tests.support.service import Service


def test_server_uses_what_was_read_of_mlflow_and_uvicorn(mlflow: Service) -> None:
    upstream.compare("server", mlflow.run("python3", "-W", "ignore", "-c", upstream.PROGRAM, "mlstack.server"))


def test_jobs_use_what_was_read_of_mlflow(mlflow: Service) -> None:
    upstream.compare("jobs", mlflow.run("python3", "-W", "ignore", "-c", upstream.PROGRAM, "mlstack.jobs"))


def test_notebooks_use_what_was_read_of_mlflow(jupyter: Service) -> None:
    upstream.compare("client", jupyter.run("python3", "-W", "ignore", "-c", upstream.PROGRAM, "mlstack.client"))
