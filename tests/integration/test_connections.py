"""The path of a run: from a notebook through MLflow into rows and objects, checked at both ends."""

import hashlib
import json

from mlstack.postgres import connected
from mlstack.s3 import client_for
from mlstack.settings import Keys, Login
from tests.support.clone import Clone
from tests.support.service import Service

# The first cell of a new user: nothing is configured.
FIRST_CELL = """
import json, mlflow
mlflow.log_metric("a", 1)
run = mlflow.active_run()
mlflow.log_param("depth", 3)
mlflow.log_metric("loss", 0.1 + 0.2, step=5)
mlflow.log_text("x" * 100_000, "notes.txt")
mlflow.end_run()
print("RUN", json.dumps([run.info.run_id, run.info.artifact_uri]))
"""


def log_a_run(jupyter: Service) -> tuple[str, str]:
    printed = jupyter.run("python3", "-c", FIRST_CELL)
    line = next(line for line in printed.splitlines() if line.startswith("RUN "))
    run_id, artifact_uri = json.loads(line.removeprefix("RUN "))
    return run_id, artifact_uri.removeprefix("mlflow-artifacts:/")


def test_run_logged_in_a_notebook_is_in_postgres_and_minio(jupyter: Service, role: Login, user_keys: Keys) -> None:
    run_id, path = log_a_run(jupyter)
    with connected(role) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT key, value, step FROM metrics WHERE run_uuid = %s ORDER BY key", (run_id,))
        assert cursor.fetchall() == [("a", 1.0, 0), ("loss", 0.1 + 0.2, 5)]
        cursor.execute("SELECT key, value FROM params WHERE run_uuid = %s", (run_id,))
        assert cursor.fetchall() == [("depth", "3")]
        cursor.execute("SELECT status, user_id FROM runs WHERE run_uuid = %s", (run_id,))
        assert cursor.fetchone() == ("FINISHED", "notebook")
    stored = client_for(user_keys).get_object(user_keys.bucket, f"{path}/notes.txt").data
    assert hashlib.sha256(stored).digest() == hashlib.sha256(b"x" * 100_000).digest()


def test_notebook_reads_the_bytes_that_are_in_minio(jupyter: Service) -> None:
    run_id, _ = log_a_run(jupyter)
    read = f"import mlflow; print(len(mlflow.artifacts.load_text('runs:/{run_id}/notes.txt')))"
    assert jupyter.run("python3", "-c", read).splitlines()[-1] == "100000"


def test_notebook_has_no_route_to_postgres(built: Clone, jupyter: Service) -> None:
    """The containers of these tests share one network; the shipped ones do not."""
    networks = {name: set(service["networks"]) for name, service in built.config["services"].items()}
    assert networks["jupyter"].isdisjoint(networks["postgres"])
    assert networks["jupyter"] & networks["mlflow"]
    assert networks["postgres"] & networks["mlflow"] & networks["minio"]
