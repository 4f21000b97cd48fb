"""Explanations of a scored row, compared with Shapley values by their definition: the mean over all orders of the columns."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Any

import pytest

from mlstack.scoring.explain import Explanation, Unexplained, explain

Row = Mapping[str, Any]
Model = Callable[[Sequence[Row]], list[Any]]
ROW = {"a": 3.0, "b": 2.0, "c": 1.0}
EXAMPLE = [{"a": 1.0, "b": 2.0, "c": 0.0}, {"a": 0.0, "b": 5.0, "c": 4.0}]
MANY, ZEROS = ({str(number): value for number in range(14)} for value in (1.0, 0.0))


def explained(model: Model, row: Row, example: Sequence[Row], answer: object = None) -> Explanation | Unexplained:
    async def predict(rows: Sequence[Row]) -> list[Any]:
        return model(rows)

    return asyncio.run(explain(row, model([row])[0] if answer is None else answer, example, predict))


def by_definition(model: Model) -> dict[str, float]:
    added = dict.fromkeys(ROW, 0.0)
    orders = list(permutations(ROW))
    for order in orders:
        for other in EXAMPLE:
            current = dict(other)
            for name in order:
                before = model([current])[0]
                current[name] = ROW[name]
                added[name] += (model([current])[0] - before) / len(orders) / len(EXAMPLE)
    return added


def interaction(rows: Sequence[Row]) -> list[float]:
    return [row["a"] * row["b"] + row["b"] * row["c"] ** 2 for row in rows]


def test_contributions_are_shapley_values_and_add_up_to_the_answer() -> None:
    explanation = explained(interaction, ROW, EXAMPLE)
    assert isinstance(explanation, Explanation)
    assert explanation.contributions == pytest.approx(by_definition(interaction))
    assert explanation.base + sum(explanation.contributions.values()) == pytest.approx(8.0)


def test_column_with_the_value_of_the_example_adds_nothing() -> None:
    nan = float("nan")
    explanation = explained(lambda rows: [row["a"] for row in rows], {"a": 3.0, "b": nan}, [{"a": 1.0, "b": nan}])
    assert explanation == Explanation(1.0, {"a": 2.0, "b": 0.0})


@pytest.mark.parametrize(
    ("model", "row", "example", "answer", "reason"),
    [
        (lambda rows: ["late"] * len(rows), ROW, EXAMPLE, None, "not a finite number"),
        (lambda rows: [row["a"] or None for row in rows], ROW, EXAMPLE, None, "mixture"),
        (interaction, ROW, [], None, "no input example"),
        (interaction, ROW, [{"a": 1.0}], None, "no input example"),
        (lambda rows: [sum(row.values()) for row in rows], MANY, [ZEROS], None, "14 columns differ"),
        (interaction, ROW, EXAMPLE, 8.1, "do not add up"),
    ],
)
def test_reason_is_given_where_no_exact_explanation_exists(
    model: Model, row: Row, example: Sequence[Row], answer: object, reason: str
) -> None:
    explanation = explained(model, row, example, answer)
    assert isinstance(explanation, Unexplained)
    assert reason in explanation.as_json()["reason"]
