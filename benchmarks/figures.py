"""Measured values and their statistics: medians, spreads, ratios, shares of a raw limit, goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

DEFAULTS, MLSTACK, RAW = "defaults", "mlstack", "raw"
Values = Mapping[str, float]
"""One repetition: a value for each line that it measured, by the line's key."""


class Better(StrEnum):
    MORE, LESS = "more", "less"


class Against(StrEnum):
    """What a goal is compared with."""

    DEFAULTS = "× the defaults"
    RAW = "of the raw limit"
    VALUE = ""


@dataclass(frozen=True)
class Goal:
    """`bound` is a factor by which we are better than the defaults, a share of the raw limit, or a value in the line's unit."""

    against: Against
    bound: float

    def text(self, line: "Line") -> str:
        """As the table shows it."""
        if self.against is Against.VALUE:
            return f"{'≤' if line.better is Better.LESS else '≥'} {number(self.bound)} {line.unit}"
        if self.against is Against.DEFAULTS and line.better is Better.LESS:
            return f"≤ 1/{number(self.bound)} of the defaults"
        return f"≥ {number(self.bound)} {self.against}"


@dataclass(frozen=True)
class Line:
    """One measured quantity. `label` says what is measured."""

    key: str
    label: str
    unit: str
    better: Better
    goals: tuple[Goal, ...] = ()


def of(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return median(values) if values else None


@dataclass
class Figure:
    """A line and all its values, by side: the defaults, mlstack, the raw limit."""

    line: Line
    values: dict[str, list[float]] = field(default_factory=lambda: {DEFAULTS: [], MLSTACK: [], RAW: []})

    def median(self, side: str) -> float | None:
        return of(self.values[side])

    def spread(self, side: str) -> tuple[float, float] | None:
        """The smallest and the largest value."""
        return (min(self.values[side]), max(self.values[side])) if self.values[side] else None

    @property
    def ratio(self) -> float | None:
        """How many times better than the defaults: above 1 is better, for rates and times."""
        return self._better_than(DEFAULTS)

    @property
    def share(self) -> float | None:
        """The share of the raw limit that is reached: 1 is all of it, for rates and times."""
        return self._better_than(RAW)

    @property
    def met(self) -> bool | None:
        """Whether every goal is met; None without one, or before both sides of it were measured."""
        results = [self._meets(goal) for goal in self.line.goals]
        return None if not results or None in results else all(results)

    def _better_than(self, side: str) -> float | None:
        ours, theirs = self.median(MLSTACK), self.median(side)
        if not ours or not theirs:
            return None
        return ours / theirs if self.line.better is Better.MORE else theirs / ours

    def _meets(self, goal: Goal) -> bool | None:
        if goal.against is Against.VALUE:
            ours = self.median(MLSTACK)
            return None if ours is None else (ours <= goal.bound if self.line.better is Better.LESS else ours >= goal.bound)
        reached = self.ratio if goal.against is Against.DEFAULTS else self.share
        return None if reached is None else reached >= goal.bound


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


def number(value: float) -> str:
    """Three significant digits, with separated thousands."""
    if value == 0 or abs(value) >= 100:  # noqa: PLR2004
        return f"{value:,.0f}"
    return f"{value:.3g}"
