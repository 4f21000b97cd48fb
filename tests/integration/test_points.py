"""Metric points that are stored together (mlstack.server.metrics): the same rows and permissions as MLflow's own."""

import json
import secrets
from typing import Any

import pytest
import requests

from mlstack.postgres import connected
from mlstack.settings import Login
from tests.support.clone import Clone
from tests.support.service import Service, wait_until

AWKWARD: list[list[dict[str, Any]]] = [
    [{"key": "loss", "value": 0.1 + 0.2, "timestamp": 5, "step": 7}],
    [{"key": "loss", "value": 1, "timestamp": 4, "step": 7}],  # older
    [{"key": "loss", "value": 2, "timestamp": 9, "step": 3}],  # of an earlier step
    [{"key": "loss", "value": 0.1 + 0.2, "timestamp": 5, "step": 7}],  # repeated
    [{"key": "nan", "value": "NaN", "timestamp": 1, "step": 0}, {"key": "nan", "value": "NaN", "timestamp": 1, "step": 0}],
    [{"key": "nan", "value": -1, "timestamp": 1, "step": 0}, {"key": "inf", "value": "Infinity", "timestamp": 1}],
    [{"key": "inf", "value": "-Infinity", "timestamp": 2}, {"key": "it/s 100 é:-.", "value": 1e-320, "timestamp": 1, "step": -5}],
    [{"key": f"many/{n % 7}", "value": n * 1e300, "timestamp": n, "step": -n} for n in range(999)],
]


@pytest.fixture
def notebook(built: Clone) -> tuple[str, str]:
    return built.values["MLFLOW_TRACKING_USERNAME"], built.values["MLFLOW_TRACKING_PASSWORD"]


@pytest.fixture
def admin(built: Clone) -> tuple[str, str]:
    return built.values["MLFLOW_ADMIN_USERNAME"], built.values["MLFLOW_ADMIN_PASSWORD"]


class Api:
    """MLflow's API, as one account."""

    def __init__(self, mlflow: Service, auth: tuple[str, str]) -> None:
        self._address, self.auth = mlflow.address(5000), auth

    def post(self, path: str, body: Any, version: str = "2.0", **headers: str) -> requests.Response:
        url = f"http://{self._address}/api/{version}/mlflow/{path}"
        return requests.post(
            url, data=json.dumps(body), auth=self.auth, headers={"Content-Type": "application/json"} | headers, timeout=60
        )

    def run(self, experiment: str = "0") -> str:
        run: str = self.post("runs/create", {"experiment_id": experiment, "start_time": 1}).json()["run"]["info"]["run_id"]
        return run


def rows(role: Login, run: str) -> list[tuple[Any, ...]]:
    """The history and the last values."""
    with connected(role) as connection, connection.cursor() as cursor:
        columns = "key, value, is_nan, timestamp, step"
        cursor.execute(
            f"(SELECT {columns} FROM metrics WHERE run_uuid = %(run)s ORDER BY 1, 5, 4, 2)"  # noqa: S608
            f" UNION ALL (SELECT {columns} FROM latest_metrics WHERE run_uuid = %(run)s ORDER BY 1)",
            {"run": run},
        )
        return cursor.fetchall()


def test_metric_rows_are_those_that_mlflow_writes(mlflow: Service, notebook: tuple[str, str], role: Login) -> None:
    api = Api(mlflow, notebook)
    ours, theirs = api.run(), api.run()
    for number, points in enumerate(AWKWARD):
        assert api.post("runs/log-batch", {"run_id": ours, "metrics": points}).status_code == 200
        tag = [{"key": "number", "value": str(number)}]  # which only MLflow's own route takes
        assert api.post("runs/log-batch", {"run_id": theirs, "metrics": points, "tags": tag}).status_code == 200
    for point in AWKWARD[0] + AWKWARD[2]:
        assert api.post("runs/log-metric", {"run_id": ours, **point, "value": 3}).status_code == 200
        assert api.post("runs/log-batch", {"run_id": theirs, "metrics": [point | {"value": 3}], "tags": tag}).status_code == 200
    assert rows(role, ours) == rows(role, theirs)
    assert len(rows(role, ours)) > 1000


def test_metrics_are_stored_through_their_own_connection(mlflow: Service, notebook: tuple[str, str], owner: Login) -> None:
    api = Api(mlflow, notebook)
    run = api.run()
    for step in range(20):  # both workers
        assert api.post("runs/log-metric", {"run_id": run, "key": "a", "value": 1, "timestamp": 1, "step": step}).ok
    with connected(owner) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mlstack points' AND query LIKE '%latest_metrics%'"
        )
        assert cursor.fetchone()[0] >= 1  # type: ignore[index]


@pytest.mark.parametrize(
    "points",
    [
        [{"key": "a b!", "value": 1, "timestamp": 1}],
        [{"key": "a", "value": 1, "timestamp": -1}],
        [{"key": "a", "value": 1}],
        [{"key": "a", "value": 1, "timestamp": 1}] * 1001,
    ],
)
def test_metrics_that_mlflow_rejects_are_rejected(
    mlflow: Service,
    notebook: tuple[str, str],
    role: Login,
    points: Any,
) -> None:
    api = Api(mlflow, notebook)
    run = api.run()
    assert api.post("runs/log-metric", {"run_id": run, "key": "a", "value": 1, "timestamp": 1}).ok  # the caller is in the cache
    answer = api.post("runs/log-batch", {"run_id": run, "metrics": points})
    assert answer.status_code == 400 and answer.json()["message"]
    assert len(rows(role, run)) == 2


def test_deleted_or_unknown_run_takes_no_metric(mlflow: Service, notebook: tuple[str, str], role: Login) -> None:
    api = Api(mlflow, notebook)
    run = api.run()
    point = {"key": "a", "value": 1, "timestamp": 1}
    assert api.post("runs/log-metric", {"run_id": run, **point}).ok
    assert api.post("runs/delete", {"run_id": run}).ok
    answer = api.post("runs/log-metric", {"run_id": run, **point, "step": 1})
    assert answer.status_code == 400 and "must be in the 'active' state" in answer.json()["message"]
    assert len(rows(role, run)) == 2
    assert (
        api.post("runs/log-metric", {"run_id": "0" * 32, **point}).status_code == 403
    )  # as MLflow: the answer does not reveal which ids exist


def test_form_of_another_origin_stores_nothing(mlflow: Service, notebook: tuple[str, str], role: Login) -> None:
    """A page of another origin may send text/plain without a preflight, and browsers add a saved password."""
    api = Api(mlflow, notebook)
    run = api.run()
    point = {"run_id": run, "key": "a", "value": 1, "timestamp": 1}
    assert api.post("runs/log-metric", point).ok
    assert not api.post("runs/log-metric", point | {"step": 1}, **{"Content-Type": "text/plain"}).ok
    assert len(rows(role, run)) == 2


def test_permissions_are_read_for_each_call(
    mlflow: Service, notebook: tuple[str, str], admin: tuple[str, str], role: Login
) -> None:
    owner, boss = Api(mlflow, notebook), Api(mlflow, admin)
    name, password = f"colleague-{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    assert boss.post("users/create", {"username": name, "password": password}).ok
    colleague = Api(mlflow, (name, password))
    experiment = owner.post("experiments/create", {"name": name}).json()["experiment_id"]
    run = owner.run(experiment)
    point = {"run_id": run, "key": "a", "value": 1, "timestamp": 1}
    assert colleague.post("runs/log-metric", point).status_code == 200  # everybody may edit
    assert colleague.post("runs/log-metric", point | {"step": 1}).status_code == 200
    grant = {"username": name, "resource_type": "experiment", "resource_id": experiment}
    batch = {"run_id": run, "metrics": [{"key": "b", "value": 1, "timestamp": 1}]}
    for change, permission, status in (("grant", {"permission": "DENY"}, 403), ("revoke", {}, 200)):
        assert boss.post(f"users/permissions/{change}", grant | permission, "3.0").ok
        assert colleague.post("runs/log-metric", point | {"step": 2}).status_code == status, change
        assert colleague.post("runs/log-batch", batch).status_code == status, change
    assert boss.post("runs/log-metric", point | {"step": 3}).status_code == 200  # the admin has no grant and needs none
    assert boss.post("runs/log-metric", point | {"step": 4}).status_code == 200
    assert len([row for row in rows(role, run) if row[0] == "a"]) == 6


def test_restart_of_postgres_loses_no_acknowledged_metric(
    mlflow: Service, postgres: Service, notebook: tuple[str, str], role: Login
) -> None:
    api = Api(mlflow, notebook)
    run = api.run()
    stored = []
    for step in range(30):
        if step == 10:
            postgres.wrapped.stop()
        if step == 20:
            postgres.wrapped.start()
            wait_until(postgres.is_healthy)
        if api.post("runs/log-metric", {"run_id": run, "key": "a", "value": 1, "timestamp": 1, "step": step}).ok:
            stored.append(step)
    wait_until(lambda: api.post("runs/log-metric", {"run_id": run, "key": "a", "value": 1, "timestamp": 1, "step": 99}).ok)
    assert set(range(10)) <= set(stored) and not set(range(10, 20)) & set(stored)
    assert {row[4] for row in rows(role, run)} >= {*stored, 99}


def test_model_links_are_removed_for_accounts_without_access(
    mlflow: Service, notebook: tuple[str, str], admin: tuple[str, str]
) -> None:
    owner, boss = Api(mlflow, notebook), Api(mlflow, admin)
    colleague = Api(mlflow, (f"colleague-{secrets.token_hex(4)}", secrets.token_urlsafe(12)))
    name, password = colleague.auth
    assert boss.post("users/create", {"username": name, "password": password}).ok
    experiment = owner.post("experiments/create", {"name": name}).json()["experiment_id"]
    run = owner.run(experiment)
    model = owner.post("logged-models", {"experiment_id": experiment, "name": "m"}).json()["model"]["info"]["model_id"]
    assert owner.post("runs/outputs", {"run_id": run, "models": [{"model_id": model, "step": 0}]}).ok

    def linked(api: Api) -> bool:
        (row,) = api.post("runs/search", {"experiment_ids": [experiment]}).json()["runs"]
        return bool(row.get("outputs", {}).get("model_outputs"))

    assert linked(colleague) and linked(boss)
    denied = {"username": name, "resource_type": "logged_model", "resource_id": "*", "permission": "DENY"}
    assert boss.post("users/permissions/grant", denied, "3.0").ok
    assert not linked(colleague)
    assert linked(owner) and linked(boss)
