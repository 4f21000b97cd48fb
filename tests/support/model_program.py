"""Logs models with MLflow's defaults, loads them by alias and compares their predictions. Runs in the notebooks' container:
python3 model_program.py [NAME …] prints one JSON object for each model; without names, for every one it knows."""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, clone
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
NUMBERS = numbers.astype("float32")


@dataclass(frozen=True)
class Result:
    """What became of one model."""

    name: str
    library: str
    problem: str = ""
    """Empty where the loaded model predicts the same."""
    fits: bool = True


def predict(model: Any, table: Any) -> Any:
    return model.predict(table)


@dataclass(frozen=True)
class Case:
    """A model, and the table that it predicts on."""

    library: str
    flavor: Any
    fit: Callable[[], Any]
    """Returns a new fitted model."""
    table: Any
    predict: Callable[[Any, Any], Any] = predict
    autologs: bool = False


class Majority(BaseEstimator, ClassifierMixin):
    """A class of the user's own, as in a cell."""

    def fit(self, _: Any, labels: Any) -> "Majority":
        self.classes_, counts = np.unique(labels, return_counts=True)
        self.most_ = self.classes_[counts.argmax()]
        return self

    def predict(self, table: Any) -> Any:
        return np.full(len(table), self.most_)


def estimator(name: str, cls: type) -> Case | None:
    """A class of scikit-learn, on the first of these tables that it takes; None where it takes none."""
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
        library = cls.__module__.rsplit("._", 1)[0]
        return fitted_by(library, mlflow.sklearn, model, table, labels, autologs=name == "RandomForestClassifier")
    return None


def fitted_by(library: str, flavor: Any, model: Any, table: Any = TABLE, labels: Any = LABEL, *, autologs: bool = False) -> Case:
    """A model with scikit-learn's interface."""
    return Case(library, flavor, lambda: clone(model).fit(table, labels), table, autologs=autologs)


def own() -> Iterator[tuple[str, Case]]:
    """Models that are none of scikit-learn's own classes."""
    positive = FunctionTransformer(lambda table: table + 1)
    forest = RandomForestClassifier(5, random_state=0)
    search = GridSearchCV(forest, {"max_depth": [1, 2]}, cv=2)
    yield "pipeline with a lambda", fitted_by("a lambda", mlflow.sklearn, make_pipeline(positive, forest))
    yield "class of the notebook", fitted_by("a class of one's own", mlflow.sklearn, Majority())
    yield "GridSearchCV", fitted_by("sklearn.model_selection", mlflow.sklearn, search, autologs=True)
    if find_spec("lightgbm"):
        import lightgbm

        regressor = make_pipeline(positive, lightgbm.LGBMRegressor(n_estimators=3, verbose=-1))
        classifier = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1)
        yield "LGBMClassifier", fitted_by("lightgbm", mlflow.lightgbm, classifier, autologs=True)
        yield "LGBMRegressor in a pipeline", fitted_by("lightgbm", mlflow.sklearn, regressor)
    if find_spec("xgboost"):
        import xgboost

        yield "XGBClassifier", fitted_by("xgboost", mlflow.xgboost, xgboost.XGBClassifier(n_estimators=3), autologs=True)
    if find_spec("catboost"):
        import catboost

        settings = {"iterations": 3, "verbose": False, "allow_writing_files": False, "random_seed": 0}
        yield "CatBoostClassifier", fitted_by("catboost", mlflow.catboost, catboost.CatBoostClassifier(**settings))
    if find_spec("prophet"):
        import prophet

        days = pd.DataFrame({"ds": pd.date_range("2013-01-01", periods=ROWS), "y": numbers[:, 0]})
        yield "Prophet", Case("prophet", mlflow.prophet, lambda: prophet.Prophet(uncertainty_samples=0).fit(days), days)
    if find_spec("statsmodels"):
        import statsmodels.api

        yield (
            "OLS",
            Case("statsmodels", mlflow.statsmodels, lambda: statsmodels.api.OLS(LABEL, TABLE).fit(), TABLE, autologs=True),
        )
    if find_spec("torch"):
        yield from networks()


def networks() -> Iterator[tuple[str, Case]]:
    """Models of PyTorch and what builds on it. Keras computes with PyTorch here."""
    import torch
    from lightning import LightningModule, Trainer

    torch.manual_seed(0)
    inputs = torch.tensor(NUMBERS)

    class Net(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(5, 2)

        def forward(self, rows: Any) -> Any:
            return self.layer(rows)

        def training_step(self, batch: Any, _: int) -> Any:
            rows, labels = batch
            return torch.nn.functional.cross_entropy(self(rows), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    def trained() -> Any:
        rows = torch.utils.data.TensorDataset(inputs, torch.tensor(label))
        loader = torch.utils.data.DataLoader(rows, batch_size=20, num_workers=2)  # workers pass batches through /dev/shm
        net = Net()
        Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(net, loader)
        return net

    def scores(net: Any, rows: Any) -> Any:
        return net(rows).detach().numpy()

    sequence = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    yield "Sequential", Case("torch", mlflow.pytorch, lambda: sequence, inputs, scores)
    yield "LightningModule", Case("lightning", mlflow.pytorch, trained, inputs, scores, autologs=True)

    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    def dense() -> Any:
        model = keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(NUMBERS, label, verbose=0)
        return model

    yield "Sequential of Keras", Case("keras", mlflow.keras, dense, NUMBERS, autologs=True)

    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, pipeline

    def reader() -> Any:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "late", "flight"]
        vocabulary = Path(tempfile.mkdtemp(), "vocab.txt")
        vocabulary.write_text("\n".join(words))
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).eval()
        return pipeline("text-classification", model=model, tokenizer=BertTokenizerFast(str(vocabulary)))

    yield "pipeline for texts", Case("transformers", mlflow.transformers, reader, ["late flight"], lambda read, text: read(text))


def log_and_load(case: Case, name: str) -> None:
    """Raises where a model cannot be logged with the defaults, not be loaded, or predicts something else."""
    registered = "".join(letter if letter.isalnum() else "-" for letter in name)
    model = case.fit()
    with mlflow.start_run(run_name=name):
        logged = case.flavor.log_model(model, name="model", registered_model_name=registered)
    mlflow.MlflowClient().set_registered_model_alias(registered, "champion", logged.registered_model_version)
    compare(case, model, f"models:/{registered}@champion")


def fit_and_load(case: Case) -> None:
    """Raises where autologging stores no model, or one that cannot be loaded or predicts something else."""
    with mlflow.start_run() as run:
        model = case.fit()
    (logged,) = mlflow.search_logged_models(
        filter_string=f"source_run_id = '{run.info.run_id}' AND name = 'model'", output_format="list"
    )
    compare(case, model, logged.model_uri)


def compare(case: Case, model: Any, uri: str) -> None:
    ours, theirs = (pd.DataFrame(case.predict(either, case.table)) for either in (case.flavor.load_model(uri), model))
    # Sums of floats differ in their last bit from call to call.
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-12, atol=1e-12)


def attempt(name: str, library: str, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001  (reported as this model's result)
        report(Result(name, library, f"{type(error).__name__}: {error}"[:300]))
    else:
        report(Result(name, library))


def main(wanted: set[str]) -> None:
    warnings.simplefilter("ignore")
    mlflow.set_experiment("models")
    classes = dict(all_estimators("classifier")) | dict(all_estimators("regressor"))
    others = dict(own())
    if missing := wanted - classes.keys() - others.keys():
        sys.exit(f"not known: {missing}")
    cases: dict[str, Case] = {}
    for name in sorted(wanted or classes.keys() | others.keys()):
        if case := others.get(name) or estimator(name, classes[name]):
            cases[name] = case
            attempt(name, case.library, lambda n=name, c=case: log_and_load(c, n))
        else:
            report(Result(name, classes[name].__module__, fits=False))
    if wanted:
        return
    mlflow.autolog(silent=True)
    for name, case in cases.items():
        if case.autologs:
            attempt(f"{name} by autologging", case.library, lambda c=case: fit_and_load(c))


def report(result: Result) -> None:
    # A progress bar on the other stream may have left its line open.
    print(f"\nRESULT {json.dumps(asdict(result))}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(set(sys.argv[1:]))
