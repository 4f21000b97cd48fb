"""In Jupyter: a search whose trials wait until the test lets them continue. Arguments: its name, the number of trials."""

import sys
import time
from collections.abc import Mapping

import mlflow
import optuna
from mlflow import MlflowClient

from mlstack import tune

GATE = "ray-gate"


def objective(params: Mapping[str, float]) -> float:
    """Logs a model and that it has begun, waits for the tag `open` of the gate's experiment, and logs another metric."""
    import numpy as np
    from sklearn.linear_model import Ridge

    x = np.arange(20.0).reshape(-1, 1)
    model = Ridge(alpha=params["alpha"]).fit(x, 2 * x.ravel())
    mlflow.sklearn.log_model(model, name="model", pip_requirements=["scikit-learn"])
    mlflow.log_metric("begun", 1)
    while "open" not in MlflowClient().get_experiment_by_name(GATE).tags:
        time.sleep(0.2)
    mlflow.log_metric("continued", 1)
    return float(model.score(x, 2 * x.ravel()))


mlflow.set_experiment("searches")
name, trials = sys.argv[1], int(sys.argv[2])
space = {"alpha": optuna.distributions.FloatDistribution(0.1, 10)}
study = tune.search(name, objective, space, trials=trials, direction="maximize", parallel=4)
print("ended", len(study.trials))  # noqa: T201 # the test reads it
