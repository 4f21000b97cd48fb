"""Runs in Jupyter: registers versions of a model that multiplies by a factor, and versions that fail in the scoring service.

Its argument is the model's name. It prints the kind of each version, by number, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

EXAMPLE = pd.DataFrame({"x": [1.0, 2.0], "count": [1, 2], "name": ["a", "b"]})


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Answers x × factor. In the service it does what its kind says while it is loaded."""

    def __init__(self, kind: str, factor: float) -> None:
        self.kind, self.factor = kind, factor
        self.leaked: list[bytes] = []

    def load_context(self, context: Any) -> None:
        import os
        import time

        if "SCORING_PORT" not in os.environ:
            return
        if self.kind == "crash":
            os.abort()
        if self.kind == "exit":
            os._exit(0)
        if self.kind == "endless":
            time.sleep(3600)
        if self.kind == "memory":
            self.hoard = bytearray(8 << 30)
            for place in range(0, len(self.hoard), 4096):
                self.hoard[place] = 1
        if self.kind == "package":
            import a_package_that_is_missing  # type: ignore[import-not-found] # noqa: F401

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[float]:
        if self.kind == "leak":
            self.leaked.append(b"\1" * (16 << 20))
        if (model_input["x"] == -1).any():
            raise ValueError("secret-of-the-model")
        return [float(value) * self.factor for value in model_input["x"]]


def register(name: str, kind: str, factor: float) -> str:
    model = Model(kind, factor)
    signature = mlflow.models.infer_signature(EXAMPLE, [1.0])
    stored = [0.0, 0.0] if kind == "other answer" else model.predict(None, EXAMPLE)
    logged = mlflow.pyfunc.log_model(
        name="model",
        python_model=model,
        signature=None if kind == "no signature" else signature,
        input_example=None if kind == "no signature" else EXAMPLE,
        metadata={"example_answer": stored},
        pip_requirements=[],
        registered_model_name=name,
    )
    return str(logged.registered_model_version)


def main(name: str, *kinds: str) -> None:
    mlflow.set_experiment(name)
    with mlflow.start_run():
        versions = {register(name, kind, float(number)): kind for number, kind in enumerate(kinds, 1)}
    Path("/tmp/versions.json").write_text(json.dumps(versions))  # noqa: S108 # MLflow prints to stdout too


if __name__ == "__main__":
    main(*sys.argv[1:])
