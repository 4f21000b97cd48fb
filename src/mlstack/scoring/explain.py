"""How much each column adds to an answer: its exact Shapley value, for any model.

The players are the columns in which a row differs from the model's input example; a column that does not play has the example's
value, and the mean over the example's rows counts (Shapley values with a background, also called interventional: Lundberg and
Lee, "A Unified Approach to Interpreting Model Predictions", 2017). Every set of columns is scored, so nothing is estimated.
shap.TreeExplainer is faster and wrong, without a warning, for histogram boosting with categorical columns.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mlstack.scoring.policy import Case

if TYPE_CHECKING:
    from mlstack.scoring.schema import Row

MOST_CALCULATED = 10_000  # rows, for one explanation
MOST_EXPLAINED = 10  # rows of a request
CLOSE = 1e-6  # how exactly the contributions add up to the answer, relative to it if that is more than 1


@dataclass(frozen=True)
class Explanation:
    """The mean answer to the example, and what each column adds to it; together they are the answer."""

    base: float
    contributions: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        return {"base": self.base, "contributions": self.contributions}


@dataclass(frozen=True)
class Unexplained:
    """Why there is no exact explanation."""

    reason: str

    def as_json(self) -> dict[str, Any]:
        return {"contributions": None, "reason": self.reason}


async def explain(
    row: Row, answer: object, example: Sequence[Row], predict: Callable[[Sequence[Row]], Awaitable[Sequence[Any]]]
) -> Explanation | Unexplained:
    """The exact explanation of an answer, or the reason why there is none. Raises what `predict` raises."""
    score = Case(row, answer).score
    if score is None:
        return Unexplained("the answer is not a finite number")
    if not example or any(other.keys() != row.keys() for other in example):
        return Unexplained("the model has no input example with the row's columns, to which the row could be compared")
    players = [name for name in row if not all(_equal(row[name], other[name]) for other in example)]
    if len(example) << len(players) > MOST_CALCULATED:
        return Unexplained(f"{len(players)} columns differ from the input example, too many for an exact calculation")
    scores = [Case({}, combined).score for combined in await predict(_combined(row, players, example))]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return Unexplained(
            "the model answers a mixture of the row and its input example with something else than a finite number"
        )
    values = [fmean(known[start : start + len(example)]) for start in range(0, len(known), len(example))]
    added = dict(zip(players, _shapley(values, len(players)), strict=True))
    if abs(values[0] + sum(added.values()) - score) > CLOSE * max(1.0, abs(score)):
        return Unexplained("the contributions do not add up to the answer, because the model does not repeat it")
    return Explanation(values[0], {name: added.get(name, 0.0) for name in row})


def _combined(row: Row, players: Sequence[str], example: Sequence[Row]) -> list[Row]:
    """The rows to score for each set of players. Bit n of a set says whether player n has the row's value."""
    return [
        {**row, **{name: other[name] for n, name in enumerate(players) if not members >> n & 1}}
        for members in range(1 << len(players))
        for other in example
    ]


def _shapley(values: Sequence[float], players: int) -> list[float]:
    """The Shapley value of each player, from the value of each set."""
    weights = [1 / (players * math.comb(players - 1, size)) for size in range(players)]
    return [
        math.fsum(
            weights[members.bit_count()] * (values[members | 1 << player] - values[members])
            for members in range(len(values))
            if not members >> player & 1
        )
        for player in range(players)
    ]


def _equal(left: object, right: object) -> bool:
    is_nan = isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
    return is_nan or left == right
