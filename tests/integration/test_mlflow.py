"""The tracking server of docker/python: its API, its accounts, and a healthcheck that includes the database."""

from typing import Any

import pytest
import requests
from testcontainers.core.network import Network

from tests.support.clone import Clone
from tests.support.service import Service, wait_until


@pytest.fixture
def notebook(built: Clone) -> tuple[str, str]:
    return built.values["MLFLOW_TRACKING_USERNAME"], built.values["MLFLOW_TRACKING_PASSWORD"]


def call(
    mlflow: Service, method: str, path: str, auth: tuple[str, str] | None, body: Any = None, **headers: str
) -> requests.Response:
    url = f"http://{mlflow.address(5000)}/api/2.0/mlflow/{path}"
    return requests.request(method, url, json=body, auth=auth, headers=headers, timeout=60)


def test_run_is_read_back_as_logged(mlflow: Service, notebook: tuple[str, str]) -> None:
    run = call(mlflow, "POST", "runs/create", notebook, {"experiment_id": "0", "start_time": 1}).json()["run"]["info"]["run_id"]
    point = {"key": "loss", "value": 0.1 + 0.2, "timestamp": 5, "step": 7}
    assert call(mlflow, "POST", "runs/log-metric", notebook, {"run_id": run, **point}).status_code == 200
    history = call(mlflow, "GET", f"metrics/get-history?run_id={run}&metric_key=loss", notebook).json()["metrics"]
    assert [{name: sample[name] for name in point} for sample in history] == [point]
    # The notebooks' account may delete a run without an owner.
    assert call(mlflow, "POST", "runs/delete", notebook, {"run_id": run}).status_code == 200


def test_artifact_is_read_back_byte_for_byte(mlflow: Service, notebook: tuple[str, str]) -> None:
    run = call(mlflow, "POST", "runs/create", notebook, {"experiment_id": "0", "start_time": 1}).json()["run"]["info"]
    path = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    url = f"http://{mlflow.address(5000)}/api/2.0/mlflow-artifacts/artifacts/{path}/blob"
    content = bytes(range(256)) * 1000
    assert requests.put(url, data=content, auth=notebook, timeout=60).status_code == 200
    assert requests.get(url, auth=notebook, timeout=60).content == content


def test_artifact_uri_does_not_point_to_minio(mlflow: Service, notebook: tuple[str, str]) -> None:
    """MLflow's own presigned URL would name minio:9000, which only the data network reaches: downloads would hang."""
    url = f"http://{mlflow.address(5000)}/api/3.0/mlflow/server-info"
    info = requests.get(url, auth=notebook, timeout=60).json()
    assert (info["multipart_uploads_enabled"], info["multipart_downloads_enabled"]) == (False, False), info


def test_admin_account_is_that_of_the_env_file(built: Clone, mlflow: Service) -> None:
    admin = built.values["MLFLOW_ADMIN_USERNAME"], built.values["MLFLOW_ADMIN_PASSWORD"]
    answer = call(mlflow, "GET", f"users/get?username={admin[0]}", admin)
    assert answer.json()["user"]["is_admin"] is True


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("127.0.0.1:5001", 200), ("mlflow:5000", 200), ("evil.example", 403)]
)
def test_mlflow_answers_only_to_the_host_names_of_the_stack(
    mlflow: Service, notebook: tuple[str, str], host: str, status: int
) -> None:
    assert call(mlflow, "GET", "experiments/get?experiment_id=0", notebook, Host=host).status_code == status


def test_mlflow_is_unhealthy_only_while_postgres_is_down(mlflow: Service, postgres: Service) -> None:
    postgres.wrapped.stop()
    try:
        wait_until(lambda: not mlflow.is_healthy())
        assert (
            requests.get(f"http://{mlflow.address(5000)}/health", timeout=60).text == "OK"
        )  # MLflow's own check does not include the database
    finally:
        postgres.wrapped.start()
    wait_until(lambda: postgres.is_healthy() and mlflow.is_healthy())


def test_second_migration_does_nothing_and_imports_no_mlflow(built: Clone, network: Network, mlflow: Service) -> None:
    program = (
        "import sys; from mlstack.jobs.bootstrap.__main__ import main; main('tracking');"
        " print('imported:', 'mlflow' in sys.modules)"
    )
    with Service(built, "migration", network).with_command(["python3", "-c", program]) as migration:
        assert migration.finish() == 0, migration.log()
        assert migration.log().count("already there") == 6
        assert "imported: False" in migration.log()


WORKERS = """
import pathlib
server = [int(p.parent.name) for p in pathlib.Path("/proc").glob("[0-9]*/cmdline") if b"-m\\0mlstack.server" in p.read_bytes()]
parent = min(pid for pid in server if pid != 1)
print(*(pid for pid in server if pid not in (1, parent)))
"""


def test_worker_that_dies_is_replaced(mlflow: Service, notebook: tuple[str, str]) -> None:
    before = mlflow.run("python3", "-c", WORKERS).split()
    assert len(before) == 2
    mlflow.run("python3", "-c", f"import os; os.kill({before[0]}, 9)")

    def is_whole() -> bool:
        now = mlflow.run("python3", "-c", WORKERS).split()
        return len(now) == 2 and before[0] not in now

    wait_until(is_whole)
    for _ in range(10):
        assert call(mlflow, "GET", "experiments/get?experiment_id=0", notebook).status_code == 200


def test_mlflow_stops_on_sigterm(built: Clone, network: Network, migrated: None) -> None:
    with Service(built, "mlflow", network, 5000) as server:
        server.wrapped.stop(timeout=25)
        assert server.wrapped.attrs["State"]["ExitCode"] == 0
        assert "Traceback" not in server.log()


def test_mlflows_arguments_and_log_contain_no_secret(built: Clone, mlflow: Service) -> None:
    seen = mlflow.run("bash", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '") + mlflow.log()
    for name in (
        "MLFLOW_DB_PASSWORD",
        "MLFLOW_S3_SECRET_ACCESS_KEY",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_TRACKING_PASSWORD",
    ):
        assert built.values[name] not in seen, name
