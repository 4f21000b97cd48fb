"""Models in the notebooks' container: logged with MLflow's defaults, loaded by alias, and the same. All of them: tests/slow."""

import json
from pathlib import Path

import pytest

from tests.support.service import Service

PROGRAM = (Path(__file__).parents[1] / "support/model_program.py").read_text()
# One of each kind that skops, MLflow's own default, does not log: trees, ensembles, boosting, neighbours, code of the user's own.
MODELS = [
    "RandomForestClassifier",
    "HistGradientBoostingRegressor",
    "KNeighborsClassifier",
    "pipeline with a lambda",
    "class of the notebook",
    "LGBMClassifier",
]


@pytest.fixture(scope="module")
def printed(jupyter: Service) -> str:
    return jupyter.run("python3", "-W", "ignore", "-c", PROGRAM, *MODELS)


def test_models_logged_with_defaults_are_loaded_by_alias_and_predict_the_same(printed: str) -> None:
    results = [json.loads(line.removeprefix("RESULT ")) for line in printed.splitlines() if line.startswith("RESULT ")]
    assert {result["name"]: result["problem"] for result in results} == dict.fromkeys(MODELS, "")


def test_nobody_is_warned_of_a_format_that_nobody_chose(printed: str) -> None:
    assert "caution" not in printed


FORMATS = """
import mlflow.pytorch, mlflow.sklearn
for flavor, choices in ((mlflow.sklearn, [()]), (mlflow.pytorch, [(None,), (True,)])):
    print("DEFAULT", *[flavor._get_default_serialization_format(*each) for each in choices])
"""


def test_default_format_is_a_pickle_unless_pytorch_is_asked_to_export(jupyter: Service) -> None:
    """PyTorch itself is in no image; tests/slow logs its models."""
    printed = jupyter.run("python3", "-W", "ignore", "-c", FORMATS)
    assert [line for line in printed.splitlines() if line.startswith("DEFAULT")] == ["DEFAULT cloudpickle", "DEFAULT pickle pt2"]


AUTOLOGGED = """
import logging, mlflow, sys
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.datasets import load_iris
mlflow.set_experiment("autologged")
mlflow.autolog()
X, y = load_iris(return_X_y=True)
with mlflow.start_run() as run:
    GridSearchCV(RandomForestClassifier(5, random_state=0), {"max_depth": [1, 3]}, cv=2).fit(X, y)
models = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
for model in sorted(models, key=lambda each: each.name):
    loaded = mlflow.sklearn.load_model(f"models:/{model.model_id}")
    print("MODEL", model.name, type(loaded).__name__, round(loaded.score(X, y), 1))
"""


def test_autologging_keeps_the_models_of_a_search(jupyter: Service) -> None:
    printed = jupyter.run("python3", "-W", "ignore", "-c", AUTOLOGGED)
    models = [line.split()[1:3] for line in printed.splitlines() if line.startswith("MODEL ")]
    assert models == [["best_estimator", "RandomForestClassifier"], ["model", "GridSearchCV"]]
