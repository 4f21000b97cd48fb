"""Logs metrics that are wrong or odd beside good ones, and prints what each call raised and what was stored.

It runs in the notebooks' container twice, with mlstack's part of the client and without: both print the same.
"""

import json
import math
from decimal import Decimal
from typing import Any

import mlflow
import numpy as np

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "step 1.5": {"step": 1.5},
    "step 1.0": {"step": 1.0},
    "step True": {"step": True},
    "step 2**63": {"step": 2**63},
    "step -2**63": {"step": -(2**63)},
    "step text": {"step": "1"},
    "step of numpy": {"step": np.int64(3)},
    "timestamp 1.5": {"timestamp": 1.5},
    "timestamp 2**63": {"timestamp": 2**63},
    "timestamp -1": {"timestamp": -1},
    "timestamp True": {"timestamp": True},
    "value None": {"value": None},
    "value text": {"value": "x"},
    "value number as text": {"value": "1.5"},
    "value True": {"value": True},
    "value of numpy": {"value": np.float32(1.5)},
    "value array": {"value": np.array([2.5])},
    "value long array": {"value": np.array([2.5, 3])},
    "value nan": {"value": math.nan},
    "value -inf": {"value": -math.inf},
    "value 10**400": {"value": 10**400},
    "value Decimal": {"value": Decimal("1.5")},
    "value complex": {"value": 1j},
    "key with !": {"key": "a!"},
    "key that leads out": {"key": "../a"},
    "key empty": {"key": ""},
    "key None": {"key": None},
    "key 5": {"key": 5},
    "key of 251": {"key": "k" * 251},
    "key with é and :": {"key": "é:a"},
}


def outcomes(way: str) -> Any:
    """What each call raised, and all points of the run."""
    client, raised = mlflow.MlflowClient(), {}
    with mlflow.start_run() as run:
        for number, (name, case) in enumerate(CASES.items()):
            metric = {"key": "k", "value": 1.0, "timestamp": number + 1, "step": 2} | case
            mlflow.log_metric("good", 1, timestamp=1, step=2 * number)
            try:
                if way == "log_metric":
                    mlflow.log_metric(**metric)
                elif way == "log_metrics":
                    mlflow.log_metrics({metric["key"]: metric["value"]}, step=metric["step"], timestamp=metric["timestamp"])
                else:
                    client.log_batch(run.info.run_id, metrics=[mlflow.entities.Metric(**metric)])
                raised[name] = "nothing"
            except Exception as error:  # noqa: BLE001  (which one is the question)
                raised[name] = f"{type(error).__name__} {getattr(error, 'error_code', '')}: {error}"
            mlflow.log_metric("good", 1, timestamp=1, step=2 * number + 1)
        stored = [
            (point.key, repr(point.value), point.timestamp, point.step)
            for key in client.get_run(run.info.run_id).data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        ]
    return raised, sorted(stored)


print("RUN", json.dumps({way: outcomes(way) for way in ("log_metric", "log_metrics", "log_batch")}))  # noqa: T201
