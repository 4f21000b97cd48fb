"""Logs models with MLflow's defaults, loads them by alias and compares their predictions. Runs in the notebooks' container:
python3 model_program.py [NAME …] prints one JSON object for each model; without names, for every one it knows."""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import all_estimators
from sklearn.utils._test_common.instance_generator import _construct_instances

ROWS = 60
numbers, label = make_classification(ROWS, 5, random_state=0)
TABLE = pd.DataFrame(np.abs(numbers), columns=list("abcde"))
LABEL = pd.Series(label, name="label")
TARGETS = pd.DataFrame({"one": label, "two": 1 - label})


@dataclass(frozen=True)
class Result:
    """What became of one model."""

    name: str
    library: str
    problem: str = ""
    """Empty where the loaded model predicts the same."""
    fits: bool = True


@dataclass(frozen=True)
class Case:
    """A fitted model, and the table that it predicts on."""

    name: str
    library: str
    flavor: Any
    model: Any
    table: Any


class Majority(BaseEstimator, ClassifierMixin):
    """A class of the user's own, as in a cell."""

    def fit(self, _: Any, labels: Any) -> "Majority":
        self.classes_, counts = np.unique(labels, return_counts=True)
        self.most_ = self.classes_[counts.argmax()]
        return self

    def predict(self, table: Any) -> Any:
        return np.full(len(table), self.most_)


def estimator(name: str, cls: type) -> Case | None:
    """Fitted on the first of these tables that it takes; None where it takes none."""
    binary = (TABLE.median() < TABLE).astype(float)
    for table, labels in (
        (TABLE, LABEL),
        (binary, LABEL),
        (TABLE, TARGETS),
        (binary, TARGETS),
        (TABLE[["a"]], LABEL),
        (TABLE, LABEL + 1),
    ):
        try:
            model = next(iter(_construct_instances(cls)))
            if "random_state" in model.get_params():
                model.set_params(random_state=0)  # some predict at random
            model.fit(table, labels)
            model.predict(table)
        except Exception:  # noqa: BLE001, S112  (the next table)
            continue
        return Case(name, cls.__module__.rsplit("._", 1)[0], mlflow.sklearn, model, table)
    return None


def own() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Models that are none of scikit-learn's own classes."""
    positive = FunctionTransformer(lambda table: table + 1)
    forest = RandomForestClassifier(5)
    yield "pipeline with a lambda", lambda: case("a lambda", mlflow.sklearn, make_pipeline(positive, forest))
    yield "class of the notebook", lambda: case("a class of one's own", mlflow.sklearn, Majority())
    yield (
        "GridSearchCV",
        lambda: case("sklearn.model_selection", mlflow.sklearn, GridSearchCV(forest, {"max_depth": [1]}, cv=2)),
    )
    if find_spec("lightgbm"):
        import lightgbm

        yield "LGBMClassifier", lambda: case("lightgbm", mlflow.lightgbm, lightgbm.LGBMClassifier(n_estimators=3, verbose=-1))
        yield (
            "LGBMRegressor in a pipeline",
            lambda: case("lightgbm", mlflow.sklearn, make_pipeline(positive, lightgbm.LGBMRegressor(n_estimators=3, verbose=-1))),
        )
    if find_spec("xgboost"):
        import xgboost

        yield "XGBClassifier", lambda: case("xgboost", mlflow.xgboost, xgboost.XGBClassifier(n_estimators=3))
    if find_spec("catboost"):
        import catboost

        settings = {"iterations": 3, "verbose": False, "allow_writing_files": False}
        yield "CatBoostClassifier", lambda: case("catboost", mlflow.catboost, catboost.CatBoostClassifier(**settings))
    if find_spec("prophet"):
        import prophet

        days = pd.DataFrame({"ds": pd.date_range("2013-01-01", periods=ROWS), "y": numbers[:, 0]})
        yield (
            "Prophet",
            lambda: Case("Prophet", "prophet", mlflow.prophet, prophet.Prophet(uncertainty_samples=0).fit(days), days),
        )
    if find_spec("statsmodels"):
        import statsmodels.api

        yield "OLS", lambda: Case("OLS", "statsmodels", mlflow.statsmodels, statsmodels.api.OLS(LABEL, TABLE).fit(), TABLE)


def case(library: str, flavor: Any, model: Any) -> Case:
    return Case("", library, flavor, model.fit(TABLE, LABEL), TABLE)


def log_and_load(fitted: Case, name: str) -> None:
    """Raises where a model cannot be logged with the defaults, not be loaded, or predicts something else."""
    registered = "".join(letter if letter.isalnum() else "-" for letter in name)
    with mlflow.start_run(run_name=name):
        logged = fitted.flavor.log_model(fitted.model, name="model", registered_model_name=registered)
    mlflow.MlflowClient().set_registered_model_alias(registered, "champion", logged.registered_model_version)
    loaded = fitted.flavor.load_model(f"models:/{registered}@champion")
    ours, theirs = (pd.DataFrame(model.predict(fitted.table)) for model in (loaded, fitted.model))
    # Sums of floats differ in their last bit from call to call.
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-12, atol=1e-12)


def autologged() -> Iterator[tuple[str, str, Any]]:
    """Models that are only fitted: name, library, model."""
    forest = RandomForestClassifier(5)
    yield "GridSearchCV", "sklearn.model_selection", GridSearchCV(forest, {"max_depth": [1, 2]}, cv=2)
    yield "RandomForestClassifier", "sklearn.ensemble", forest
    if find_spec("lightgbm"):
        import lightgbm

        yield "LGBMClassifier", "lightgbm", lightgbm.LGBMClassifier(n_estimators=3, verbose=-1)
    if find_spec("xgboost"):
        import xgboost

        yield "XGBClassifier", "xgboost", xgboost.XGBClassifier(n_estimators=3)


def fit_and_load(model: Any) -> None:
    """Raises where autologging stores no model, or one that cannot be loaded or predicts something else."""
    with mlflow.start_run() as run:
        model.fit(TABLE, LABEL)
    (logged,) = mlflow.search_logged_models(
        filter_string=f"source_run_id = '{run.info.run_id}' AND name = 'model'", output_format="list"
    )
    loaded = mlflow.pyfunc.load_model(logged.model_uri)
    np.testing.assert_array_equal(np.asarray(loaded.predict(TABLE)), np.asarray(model.predict(TABLE)))


def main(wanted: set[str]) -> None:
    warnings.simplefilter("ignore")
    mlflow.set_experiment("models")
    classes = dict(all_estimators("classifier")) | dict(all_estimators("regressor"))
    makers: dict[str, Callable[[], Case | None]] = {name: lambda n=name, c=cls: estimator(n, c) for name, cls in classes.items()}
    makers |= dict(own())
    if missing := wanted - makers.keys():
        sys.exit(f"not known: {missing}")
    for name in sorted(wanted or makers):
        library = classes[name].__module__ if name in classes else name
        try:
            fitted = makers[name]()
            if fitted is None:
                report(Result(name, library, fits=False))
                continue
            library = fitted.library
            log_and_load(fitted, name)
            report(Result(name, library))
        except Exception as error:  # noqa: BLE001  (reported as this model's result)
            report(Result(name, library, f"{type(error).__name__}: {error}"[:300]))
    if wanted:
        return
    mlflow.autolog(silent=True)
    for name, library, model in autologged():
        try:
            fit_and_load(model)
            report(Result(f"{name} by autologging", library))
        except Exception as error:  # noqa: BLE001  (reported as this model's result)
            report(Result(f"{name} by autologging", library, f"{type(error).__name__}: {error}"[:300]))


def report(result: Result) -> None:
    # A progress bar on the other stream may have left its line open.
    print(f"\nRESULT {json.dumps(asdict(result))}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(set(sys.argv[1:]))
