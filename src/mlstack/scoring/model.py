"""A model version in memory: its schema, and how it answers checked rows."""

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from mlflow import pyfunc
from mlflow.models import Model
from pydantic_core import from_json, to_json

from mlstack.errors import quoted
from mlstack.scoring import formats
from mlstack.scoring.schema import InputError, Row, Schema, UnsupportedError

# In the metadata of a logged model: what it answers to its input example, for example
# log_model(…, input_example=frame, metadata={"example_answer": model.predict(frame).tolist()}).
STORED_ANSWER = "example_answer"
# Also there: the feature views that it was trained with, such as ["route@1a2b3c4d5e6f"] (docs/features.md).
FEATURES = "features"
CLOSE = 1e-6  # relative: answers of another process or processor may differ in the last digits
LOW_PRIORITY = 5  # as nice(1) counts: answers come first, and the next version still within seconds
LONGEST_REASON = 300
T = TypeVar("T")


class ModelError(Exception):
    """A model that cannot be served, or does not answer; the message is the reason."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory. `answer` takes checked rows that have the same columns; raises ModelError."""

    schema: Schema
    answer: Callable[[Sequence[Row]], list[Any]] = field(repr=False)
    example: Sequence[Row]
    stored_answer: Sequence[Any] | None
    features: tuple[str, ...] = ()

    def answer_to_example(self) -> list[Any]:
        """Its answer to the example that it was logged with, which has to be the stored one. Raises ModelError."""
        if not self.example:
            return []
        answer = self.answer(self.example)
        if len(answer) != len(self.example):
            raise ModelError(f"it answers {len(self.example)} rows with {len(answer)} values")
        if self.stored_answer is not None and not same(answer, self.stored_answer):
            raise ModelError("it answers its input example with other values than when it was logged")
        if not same(self.answer([*self.example, *self.example])[: len(answer)], answer):
            raise ModelError("its answer to a row depends on the other rows of the request")
        return answer


def load(folder: Path) -> Loaded:
    """The model in a folder. Runs its code. Raises ModelError, whatever the model raises."""
    description = _explained("its MLmodel file cannot be read", lambda: Model.load(str(folder)))
    try:
        schema = Schema.of(description.signature)
    except UnsupportedError as error:
        raise ModelError(str(error)) from error
    example = _example(folder, description, schema)
    model = _explained("it cannot be loaded", lambda: pyfunc.load_model(str(folder)))
    if model.metadata.signature.params is None:
        model.metadata.signature = None  # the rows are checked already, and twice would take a third of the time

    def answer(rows: Sequence[Row]) -> list[Any]:
        return _explained("it failed", lambda: _listed(model.predict(schema.frame(rows))))

    metadata = description.metadata or {}
    return Loaded(schema, answer, example, metadata.get(STORED_ANSWER), tuple(map(str, metadata.get(FEATURES) or ())))


def load_calmly(folder: Path) -> Loaded:
    """`load` in a thread of low priority. Raises ModelError."""
    thread = threading.get_native_id()
    # Relative: Ray's processes have a low priority already, and only root may raise it.
    os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + LOW_PRIORITY)
    return load(folder)


def same(left: object, right: object) -> bool:
    """Whether two answers are the same, but for the last digits of numbers."""
    match left, right:
        case (list() as first, list() as second):
            return len(first) == len(second) and all(map(same, first, second))
        case (dict() as first, dict() as second):
            return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())
        case (bool(), _) | (_, bool()):
            return left is right
        case (int() | float() as first, int() | float() as second):
            return math.isclose(first, second, rel_tol=CLOSE, abs_tol=1e-12) or (math.isnan(first) and math.isnan(second))
        case _:
            return left == right


def as_json(answer: Sequence[Any]) -> list[Any]:
    """An answer as it is after a journey through JSON, in which a NaN becomes null."""
    travelled: list[Any] = from_json(to_json(answer, inf_nan_mode="null", bytes_mode="base64"))
    return travelled


def _example(folder: Path, description: Model, schema: Schema) -> Sequence[Row]:
    """The input example as rows. Raises ModelError if the signature does not accept it."""
    info = description.saved_input_example_info
    path = folder / (info or {}).get("serving_input_path", "")
    if not info or not path.is_file():
        return []
    try:
        return formats.rows_of(schema, "application/json", path.read_bytes())
    except (InputError, formats.FormatError, formats.TooManyRowsError) as error:
        raise ModelError(f"its signature does not accept its own input example: {error}") from error


def _listed(result: object) -> list[Any]:
    """Predictions as values of JSON, one for each row."""
    match result:
        case pd.DataFrame():
            return list(result.to_dict("records"))
        case pd.Series() | np.ndarray():
            values: list[Any] = result.tolist()
            return values
        case list():
            return [value.item() if isinstance(value, np.generic) else value for value in result]
        case _:
            raise ModelError(f"it answers with {type(result).__name__}, which is no list, array, Series or DataFrame")


def _explained(wrong: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except ModelError:
        raise
    except ModuleNotFoundError as error:
        raise ModelError(f"it needs the package {error.name}, which the service's image does not have") from error
    except BaseException as error:  # a model may raise anything, also SystemExit
        raise ModelError(f"{wrong}: {quoted(f'{type(error).__name__}: {error}')[:LONGEST_REASON]}") from error
