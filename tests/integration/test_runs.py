"""Runs as tables (mlstack.runs), in the Jupyter container: equal to mlflow.search_runs, or rejected."""

import secrets
from typing import Any

import pytest
import requests

from tests.support.clone import Clone
from tests.support.service import Service

# Runs that differ in every field, in two experiments.
FILL = """
import math, mlflow
AWKWARD = ['', 'a,"b"', 'one\\ntwo', "it's", '\\\\N', 'NaN', 'é☂', ' ', 'null', "'%s'", 'x' * 500, '0']
for name in ("table-a", "table-b"):
    mlflow.set_experiment(name)
    for number in range(12):
        with mlflow.start_run(run_name=f"r{number % 5}") as run:
            if number % 3:
                mlflow.log_params({"depth": number, "awkward": AWKWARD[number]})
            if number % 2:
                mlflow.log_metrics({"loss": 1 / number, "it/s é": math.nan if number == 3 else number * 1e300, "inf": math.inf})
            for step in range(number):
                mlflow.log_metric("curve", step * 0.1, step=-step, timestamp=1000 + step)
            mlflow.set_tag(f"only/{number}", "x")
    mlflow.MlflowClient().delete_run(run.info.run_id)
unfinished = mlflow.MlflowClient().create_run(mlflow.get_experiment_by_name("table-b").experiment_id)
mlflow.MlflowClient().log_metric(unfinished.info.run_id, "loss", 0.25)
"""

COMPARE = """
import mlflow, pandas
from mlstack.client import runs
both = ["table-a", "table-b"]
asked = [
    ({}, {}),
    ({"filter_string": "metrics.loss < 0.5 and params.depth != '7'"}, {}),
    ({"filter_string": "tags.`only/4` = 'x'"}, {}),
    ({"filter_string": "attributes.status = 'RUNNING'"}, {}),
    ({"filter_string": "attributes.run_name ILIKE '%R1%'"}, {}),
    ({"filter_string": "params.depth = '5'"}, {}),
    ({"order_by": ["metrics.loss DESC", "params.depth ASC"]}, {}),
    ({"order_by": ["attributes.run_name", "tags.`only/1`"]}, {}),
    ({}, {"view": ("DELETED_ONLY", mlflow.entities.ViewType.DELETED_ONLY)}),
    ({}, {"view": ("ALL", mlflow.entities.ViewType.ALL)}),
]
for same, view in asked:
    ours_view, theirs_view = ({"view": view["view"][0]}, {"run_view_type": view["view"][1]}) if view else ({}, {})
    ours = runs.dataframe(both, **same, **ours_view)
    theirs = mlflow.search_runs(experiment_names=both, max_results=1000, **same, **theirs_view)
    assert len(ours), (same, view)
    assert set(ours.columns) == set(theirs.columns), set(ours.columns) ^ set(theirs.columns)
    if ours.end_time.isna().all():  # pandas gives a column of nothing but NaT a type of its own
        assert theirs.end_time.isna().all()
        theirs["end_time"] = ours.end_time
    pandas.testing.assert_frame_equal(ours, theirs[ours.columns])
    print("EQUAL", len(ours), same, view)
nothing = runs.dataframe(["table-a"], filter_string="metrics.loss > 1e9")
assert (len(nothing), len(mlflow.search_runs(experiment_names=["table-a"], filter_string="metrics.loss > 1e9"))) == (0, 0)
client = mlflow.MlflowClient()
whole = runs.history(["table-a"], metrics=["curve", "loss"], view="ALL")
expected = [
    (run, key, point.step, point.timestamp, point.value)
    for run in runs.dataframe(["table-a"], view="ALL").run_id for key in ("curve", "loss")
    for point in sorted(client.get_metric_history(run, key), key=lambda point: point.step)
]
found = list(zip(whole.run_id, whole.key, whole.step, whole.timestamp.astype("int64") // 1000, whole.value))
assert found == expected and len(found) > 60, (found[:3], expected[:3])
assert len(runs.history(["table-a"])) > len(runs.history(["table-a"], metrics=["curve"]))
print("HISTORY", len(found))
"""


@pytest.fixture(scope="module")
def filled(jupyter: Service) -> Service:
    jupyter.run("python3", "-c", FILL)
    return jupyter


def test_runs_table_equals_mlflows_cell_by_cell(filled: Service) -> None:
    printed = filled.run("python3", "-c", COMPARE)
    assert printed.count("EQUAL") == 10
    assert "HISTORY" in printed


@pytest.mark.parametrize(
    ("filter_string", "message"),
    [
        ("['table-a', 'nowhere']", "No experiment is called nowhere"),
        ("['table-a'], filter_string='metrics.loss ~ 3'", "Invalid"),
        ("['table-a'], order_by=['colour']", "colour"),
        ("['table-a'], limit=3", "Extra inputs are not permitted"),
    ],
)
def test_runs_table_rejects_what_it_cannot_answer_exactly(filled: Service, filter_string: str, message: str) -> None:
    program = f"""
from mlstack.client import runs
from mlstack.errors import MlstackError
try:
    runs.dataframe({filter_string})
except MlstackError as error:
    print("REJECTED", error)
"""
    printed = filled.run("python3", "-c", program)
    assert "REJECTED" in printed and message in printed, printed


def test_runs_table_rejects_a_server_without_its_route(filled: Service) -> None:
    program = """
import http.server, threading, mlflow
from mlstack.client import runs
from mlstack.errors import MlstackError
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
server.RequestHandlerClass.do_POST = lambda self: self.send_error(404)
threading.Thread(target=server.serve_forever, daemon=True).start()
mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")
try:
    runs.dataframe(["table-a"])
except MlstackError as error:
    print("REJECTED", error)
"""
    assert "has no route for runs as a table" in filled.run("python3", "-c", program)


def ask(mlflow: Service, auth: tuple[str, str] | None, **question: Any) -> requests.Response:
    url = f"http://{mlflow.address(5000)}/api/2.0/mlstack/runs/search"
    return requests.post(url, json=question, auth=auth, timeout=60)


def test_runs_table_shows_an_account_only_the_runs_it_may_read(built: Clone, mlflow: Service, filled: Service) -> None:
    assert ask(mlflow, None, experiment_names=["table-a"]).status_code == 401
    assert ask(mlflow, ("notebook", "wrong password"), experiment_names=["table-a"]).status_code == 401
    admin = built.values["MLFLOW_ADMIN_USERNAME"], built.values["MLFLOW_ADMIN_PASSWORD"]
    colleague = f"reader-{secrets.token_hex(4)}", secrets.token_urlsafe(12)
    api = f"http://{mlflow.address(5000)}/api"
    assert requests.post(
        f"{api}/2.0/mlflow/users/create", json=dict(zip(("username", "password"), colleague, strict=True)), auth=admin, timeout=60
    ).ok
    assert ask(mlflow, colleague, experiment_names=["table-a"]).status_code == 200
    by_name = f"{api}/2.0/mlflow/experiments/get-by-name?experiment_name=table-a"
    experiment = requests.get(by_name, auth=admin, timeout=60).json()
    denied = {
        "username": colleague[0],
        "resource_type": "experiment",
        "resource_id": experiment["experiment"]["experiment_id"],
        "permission": "DENY",
    }
    assert requests.post(f"{api}/3.0/mlflow/users/permissions/grant", json=denied, auth=admin, timeout=60).ok
    answer = ask(mlflow, colleague, experiment_names=["table-a", "table-b"])
    assert answer.status_code == 403 and "may not read the runs of experiment" in answer.text
    assert ask(mlflow, colleague, experiment_names=["table-b"]).status_code == 200
    assert ask(mlflow, admin, experiment_names=["table-a", "table-b"]).status_code == 200


def test_runs_table_filter_cannot_inject_sql(built: Clone, mlflow: Service, filled: Service) -> None:
    notebook = built.values["MLFLOW_TRACKING_USERNAME"], built.values["MLFLOW_TRACKING_PASSWORD"]
    for hostile in ("x'); DROP TABLE runs; --", "{ids}", "%(n)s", "\\", "$$"):
        assert ask(mlflow, notebook, experiment_names=["table-a"], history=True, metrics=[hostile]).status_code == 200
        assert ask(mlflow, notebook, experiment_names=["table-a"], filter=f"params.depth = '{hostile.replace(chr(39), '')}'").ok
        assert ask(mlflow, notebook, experiment_names=[hostile]).status_code == 404
    assert ask(mlflow, notebook, experiment_ids=["0; DROP TABLE runs"]).status_code == 400
    assert ask(mlflow, notebook, experiment_names=["table-a"]).status_code == 200
